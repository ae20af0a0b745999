"""A second model to measure merging on, unlike the demo's in family, head shape and text, trained from nothing.

A multi-head Qwen2 (biases in q, k and v; rotary base 50000) in one of two sizes. `small`: 7 million parameters, 12
heads of 24, on the docstrings of this Python's library and of every package installed beside it. `large`: 105 million
parameters, 12 heads of 64, on all their source, for a GPU. Run it as

    python benchmarks/second_model.py runs/second      # the same command goes on with a run that was stopped
    python benchmarks/second_model.py runs/large --size large
"""

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from journey import train
from rich.console import Console
from transformers import Qwen2Config, Qwen2Tokenizer

from gqa.convert.directory import atomic_directory
from gqa.recipes.demo.scratch import SPECIAL_TOKENS, write_random_checkpoint

MODEL: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    **SPECIAL_TOKENS,
}
TRAINING: dict[str, Any] = {
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.05,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "validation_tokens": 65_536,
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, its training and its text."""

    model: dict[str, Any]
    training: dict[str, Any]
    documents: Callable[[], Iterator[str]]
    max_tokens: int


SHORTEST_DOCUMENT, SHORTEST_REPEAT = 400, 80
"""In characters. Shorter documents say little; shorter paragraphs may repeat, being headings more often than copies."""

LONGEST_SOURCE = 100_000
"""In characters. Longer source files are tables."""

TOKENIZER_CHARACTERS = 30_000_000
"""The text that the tokenizer is trained on at most."""

HELD_OUT_SHARE = 0.02


def main(
    directory: Annotated[Path, typer.Argument(help="Folder for train.jsonl, heldout.jsonl and model.")],
    size: Annotated[str, typer.Option(help="small or large.")] = "small",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens to train on.  [default: the size's]")] = None,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler.")
    ] = True,
) -> None:
    """Gather the text, train its tokenizer, and train the model on it."""
    chosen = SIZES[size]
    if not directory.exists():
        with atomic_directory(directory) as work:
            prepare(work, chosen)
    budget = {"max_tokens": max_tokens or chosen.max_tokens, "compile": compile_model}
    Console().print(train(directory, "initial", "model", chosen.training | budget))


def prepare(directory: Path, size: Size) -> None:
    """Write train.jsonl, heldout.jsonl and the random model, with a tokenizer that transformers reads as trained."""
    write_corpus(directory, size.documents())
    (directory / "initial").mkdir()
    words = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    with TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.jsonl"
        sample.write_text("".join(sampled(directory / "train.jsonl")), encoding="utf-8")
        config = Qwen2Config(**MODEL | size.model)
        write_random_checkpoint(directory / "initial", sample, config, end_of_text="<|endoftext|>", words=words)


def sampled(path: Path) -> Iterator[str]:
    """All lines of a file, or as many, evenly spread, as come to no more than a tokenizer is trained on."""
    every = -(-path.stat().st_size // TOKENIZER_CHARACTERS)
    with path.open(encoding="utf-8") as lines:
        yield from islice(lines, None, None, every)


def write_corpus(directory: Path, documents: Iterable[str]) -> None:
    """Write train.jsonl and heldout.jsonl, a document a line; its own hash decides where."""
    with (directory / "train.jsonl").open("w") as kept, (directory / "heldout.jsonl").open("w") as held_out:
        for text in documents:
            share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
            (held_out if share < HELD_OUT_SHARE else kept).write(json.dumps({"text": text}) + "\n")


def whole_sources() -> Iterator[str]:
    """Each installed source file that is neither very short nor very long, once."""
    said: set[bytes] = set()
    for path in sources():
        text = path.read_bytes().decode("utf-8", errors="replace")
        key = hashlib.sha256(text.encode()).digest()
        if SHORTEST_DOCUMENT <= len(text) <= LONGEST_SOURCE and key not in said:
            said.add(key)
            yield text


def said_by_sources() -> Iterator[str]:
    """The docstrings of each installed source file, without the paragraphs that an earlier file has already said."""
    said: set[str] = set()
    for path in sources():
        paragraphs = [text.strip("\n") for text in "\n\n".join(docstrings(path)).split("\n\n")]
        paragraphs = [text for text in paragraphs if text and text not in said]
        said.update(text for text in paragraphs if len(text) >= SHORTEST_REPEAT)
        document = "\n\n".join(paragraphs)
        if len(document) >= SHORTEST_DOCUMENT:
            yield document


def sources() -> Iterator[Path]:
    """Every Python file of the standard library and of the installed packages, in a fixed order."""
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    yield from (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    yield from sorted(packages.rglob("*.py"))


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file's module, classes and functions from top to bottom; none if it does not parse."""
    with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
        try:
            nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
        except (SyntaxError, ValueError):  # files that are wrong on purpose
            return
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        if not isinstance(node, ast.expr):  # a lambda's body is no list
            nodes.extend(reversed(getattr(node, "body", [])))


SIZES = {
    "small": Size(
        model={"vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6},
        training=TRAINING
        | {"sequence_length": 256, "batch_tokens": 2048, "learning_rate": 2.5e-3, "log_every": 1, "save_every": 200},
        documents=said_by_sources,
        max_tokens=12_000_000,
    ),
    "large": Size(
        model={"vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12},
        training=TRAINING
        | {"sequence_length": 1024, "batch_tokens": 65_536, "learning_rate": 1.2e-3, "save_every": 1000},
        documents=whole_sources,
        max_tokens=80_000_000,
    ),
}


if __name__ == "__main__":
    typer.run(main)
