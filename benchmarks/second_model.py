"""A second model to measure merging on, unlike the demo's in family, head shape and text, trained from nothing.

A multi-head Qwen2 (biases in q, k and v; 12 heads of 24; rotary base 50000) of 7 million parameters, and its text:
the docstrings of this Python's library and of every package installed beside it. Run it as

    python benchmarks/second_model.py runs/second      # the same command goes on with a run that was stopped
"""

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from journey import train
from rich.console import Console
from transformers import Qwen2Config, Qwen2Tokenizer

from gqa.convert.directory import atomic_directory
from gqa.recipes.demo.scratch import SPECIAL_TOKENS, write_random_checkpoint

MODEL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "tie_word_embeddings": True,
    **SPECIAL_TOKENS,
}
TRAINING: dict[str, Any] = {
    "sequence_length": 256,
    "batch_tokens": 2048,
    "learning_rate": 2.5e-3,
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.05,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "validation_tokens": 65_536,
    "log_every": 1,
    "save_every": 200,
}
SHORTEST_DOCUMENT, SHORTEST_REPEAT = 400, 80
"""In characters. Shorter documents say little; shorter paragraphs may repeat, being headings more often than copies."""

HELD_OUT_SHARE = 0.02


def main(
    directory: Annotated[Path, typer.Argument(help="Folder for train.jsonl, heldout.jsonl and model.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = 12_000_000,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler.")
    ] = True,
) -> None:
    """Gather the text, train its tokenizer, and train the model on it."""
    if not directory.exists():
        with atomic_directory(directory) as work:
            write_corpus(work)
            (work / "initial").mkdir()
            write_initial(work / "initial", work / "train.jsonl")
    result = train(directory, "initial", "model", TRAINING | {"max_tokens": max_tokens, "compile": compile_model})
    Console().print(result)


def write_initial(directory: Path, text: Path) -> None:
    """The random model with a tokenizer that transformers' class for Qwen2 reads as it was trained."""
    words = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    write_random_checkpoint(directory, text, Qwen2Config(**MODEL), end_of_text="<|endoftext|>", words=words)


def write_corpus(directory: Path) -> None:
    """Write train.jsonl and heldout.jsonl, a source file's docstrings a line; a document's own hash decides where."""
    with (directory / "train.jsonl").open("w") as kept, (directory / "heldout.jsonl").open("w") as held_out:
        for text in documents():
            share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
            (held_out if share < HELD_OUT_SHARE else kept).write(json.dumps({"text": text}) + "\n")


def documents() -> Iterator[str]:
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


if __name__ == "__main__":
    typer.run(main)
