"""Makes the embedded demo checkpoint from nothing: a tokenizer, a random multi-head Llama, and its pretraining.

Pretraining is uptraining of a random checkpoint, so the loop is `gqa.uptrain`'s own. What is particular here is the
model's shape, its corpus and the numbers that train it well on two CPU cores in about an hour.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from gqa.convert.console import friendly_errors
from gqa.convert.directory import atomic_directory, check_output
from gqa.convert.errors import UserError
from gqa.recipes.demo import scratch

MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 480,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 24,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    **scratch.SPECIAL_TOKENS,
}
ROPE_THETA = 50000.0
"""Not the default of 10000, so that a tool which loses the value on its way shows at once."""

TRAINING: dict[str, Any] = {
    "sequence_length": 512,
    "batch_tokens": 8192,
    "learning_rate": 4e-3,
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.05,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "validation_tokens": 65_536,
    "dtype": "bfloat16",
}
LARGEST = 6_000_000
"""Bytes that `model.safetensors` may have: the checkpoint travels in the package."""

KEPT = (
    "config.json",
    "generation_config.json",
    "gqa.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def pretrain(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the finished checkpoint.")] = Path(
        "recipes/demo/checkpoint"
    ),
    work: Annotated[Path, typer.Option(help="Where corpus, random checkpoint and training state are kept.")] = Path(
        "runs/pretrain"
    ),
    max_tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = 30_000_000,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Train the demo's embedded checkpoint from scratch on the Python standard library.

    A run that was stopped goes on where it was when the same command is given again.

    \b
    Examples:
      python -m gqa.recipes.demo.pretrain --overwrite
      python -m gqa.recipes.demo.pretrain --max-tokens 100000 --no-compile -o runs/small --work runs/try
    """  # noqa: D301 - a raw string would hide \b from click
    with friendly_errors():
        check_output(output, [], overwrite=overwrite)
        make_checkpoint(output, work, max_tokens=max_tokens, compile_model=compile_model)
        typer.echo(f"The checkpoint is in {output}.")


def make_checkpoint(output: Path, work: Path, *, max_tokens: int, compile_model: bool) -> None:
    """Pretrain the demo's model on `max_tokens` tokens and write it to `output`, replacing what is there.

    Raises:
        UserError: there is no standard-library source to train on.
    """
    from gqa.recipes.demo.corpus import HELD_OUT_FILE, TRAIN, write_corpus
    from gqa.uptrain import UptrainConfig, uptrain

    corpus, initial, trained = work / "corpus", work / "initial", work / "trained"
    if not corpus.exists():
        with atomic_directory(corpus) as directory:
            write_corpus(directory)
    if not initial.exists():
        with atomic_directory(initial) as directory:
            write_random_checkpoint(directory, corpus / TRAIN)
    uptrain(
        UptrainConfig(
            checkpoint=str(initial),
            data=str(corpus / TRAIN),
            validation_data=str(corpus / HELD_OUT_FILE),  # watched, never chosen by
            output=trained,
            overwrite=True,
            cache_dir=work / "tokens",
            max_tokens=max_tokens,
            compile=compile_model,
            **TRAINING,
        )
    )
    _publish(trained, output)


def write_random_checkpoint(directory: Path, text: Path) -> None:
    """The demo's Llama, randomly initialised, and a tokenizer trained on the jsonl file `text`."""
    from transformers import LlamaConfig

    rope: Any = {"rope_type": "default", "rope_theta": ROPE_THETA}
    scratch.write_random_checkpoint(directory, text, LlamaConfig(**MODEL, rope_parameters=rope))


def _publish(trained: Path, output: Path) -> None:
    """Copy what the package carries of `trained` to `output`, with a card that says how it was made."""
    size = (trained / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise UserError(f"{trained}/model.safetensors has {size} bytes; the package carries at most {LARGEST}")
    with atomic_directory(output, overwrite=True) as directory:
        for name in KEPT:
            shutil.copyfile(trained / name, directory / name)
        (directory / "README.md").write_text(_card(trained), encoding="utf-8")


def _card(trained: Path) -> str:
    """The model card, its numbers read from the finished checkpoint's own files."""
    from gqa.convert.provenance import read_stages

    stage = read_stages(trained)[-1]
    return _CARD.format(tokens=stage["tokens"], steps=stage["steps"], python=stage["versions"]["python"])


_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The demo checkpoint

A multi-head Llama of 2.9 million parameters (8 heads, 8 KV heads, 6 layers, width 192, tied embeddings) that writes
something like Python. It is here so that `gqa-run demo` has a real checkpoint to convert without downloading one.

It was trained from scratch on the source files of the standard library of Python {python}, some modules held out
(`recipes/demo/corpus.py` says which): {tokens:,} tokens in {steps:,} steps. The tokenizer is a byte-level BPE of 2048
tokens trained on the same text. `gqa.json` has the settings. To make it again:

    python -m gqa.recipes.demo.pretrain --max-tokens {tokens} --overwrite

It is a demonstration: too small to be of use. The text it learnt is under the Python Software Foundation License.
"""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
