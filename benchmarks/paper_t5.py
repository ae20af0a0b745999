"""The paper's experiment in small: a T5 trained from nothing, its decoder converted, uptrained for 5% of its steps.

A T5.1.1 of 3.5 million parameters (2 + 2 layers, hidden size 256, 8 heads of 32, gated GELU, a vocabulary of 1024 with
sentinels beside it) learns span corruption on the source of the Python standard library, some modules held out. As in
the paper the decoder's self-attention and cross-attention are converted, the encoder is not. Run it as

    python benchmarks/paper_t5.py runs/t5     # the same command goes on with a run that was stopped
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from journey import PRETRAINING, Journey, healing_rates

from gqa.recipes.demo.corpus import TRAIN, write_corpus
from gqa.recipes.demo.scratch import T5_TOKENS, write_random_checkpoint

SENTINELS = 32
MODEL: dict[str, Any] = {
    "vocab_size": 1024 + SENTINELS,
    "d_model": 256,
    "d_kv": 32,
    "d_ff": 512,
    "num_layers": 2,
    "num_heads": 8,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,  # as in the pretraining of T5.1.1
    "n_positions": 128,
    **T5_TOKENS,
}
TRAINING: dict[str, Any] = {
    **PRETRAINING,
    "sequence_length": 128,
    "batch_size": 16,
    "validation_tokens": 8192,
}
HEALING = healing_rates(1e-3, 3e-4)
"""For what has lost much, half the peak of the pretraining; for what is nearly whole, a third of that."""

SCORING: dict[str, Any] = {"window": 128, "max_tokens": 65_536, "dtype": "float32"}


def make(directory: Path) -> None:
    """The text and the random model."""
    from transformers import T5Config

    write_corpus(directory)
    write_random_checkpoint(
        directory / "initial", directory / TRAIN, T5Config(**MODEL), end_of_text="</s>", sentinels=SENTINELS
    )


def main(
    directory: Annotated[Path, typer.Argument(help="Folder for the text and all checkpoints.")],
    max_steps: Annotated[int, typer.Option(help="Steps of the pretraining, of 2512 tokens.")] = 400,
    share: Annotated[float, typer.Option(help="Steps of uptraining, as a share of them.")] = 0.05,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler.")
    ] = True,
) -> None:
    """Train, convert to 2 and 1 of 8 KV heads, uptrain, and print the table."""
    journey = Journey(
        directory=directory,
        make=make,
        training=TRAINING | {"max_steps": max_steps, "compile": compile_model},
        healing=HEALING,
        share=share,
        scoring=SCORING,
        methods=("mean", "lowrank"),
        groups=(2, 1),
    )
    typer.echo(journey.run())


if __name__ == "__main__":
    typer.run(main)
