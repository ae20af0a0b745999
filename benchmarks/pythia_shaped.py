"""A model shaped as Pythia is, trained from nothing, converted to phi with half of its KV heads, and healed.

A GPT-NeoX of 5.8 million parameters (parallel residual, a quarter of every head rotary, biases everywhere, embeddings
not tied; 6 layers, 8 heads of 32) on the source of the Python standard library, some modules held out. Run it as

    python benchmarks/pythia_shaped.py runs/pythia     # the same command goes on with a run that was stopped
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from journey import PRETRAINING, Journey, healing_rates

from gqa.recipes.demo.corpus import TRAIN, write_corpus
from gqa.recipes.demo.scratch import SPECIAL_TOKENS, write_random_checkpoint

MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "tie_word_embeddings": False,
    **SPECIAL_TOKENS,
}
TRAINING: dict[str, Any] = {
    **PRETRAINING,
    "sequence_length": 256,
    "batch_tokens": 2048,
    "validation_tokens": 16_384,
}
HEALING = healing_rates(1e-3, 1e-4)
"""For what has lost much, half the peak of the pretraining; for what is nearly whole, the rate that it ended with."""

SCORING: dict[str, Any] = {"window": 256, "max_tokens": 131_072, "dtype": "float32"}


def make(directory: Path) -> None:
    """The text and the random model."""
    from transformers import GPTNeoXConfig

    write_corpus(directory)
    write_random_checkpoint(directory / "initial", directory / TRAIN, GPTNeoXConfig(**MODEL))


def main(
    directory: Annotated[Path, typer.Argument(help="Folder for the text and all checkpoints.")],
    max_steps: Annotated[int, typer.Option(help="Steps of the pretraining, of 2048 tokens.")] = 1600,
    share: Annotated[float, typer.Option(help="Steps of healing, as a share of them.")] = 0.05,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler.")
    ] = True,
) -> None:
    """Train, convert to 4 of 8 KV heads, heal, and print the table."""
    journey = Journey(
        directory=directory,
        make=make,
        training=TRAINING | {"max_steps": max_steps, "compile": compile_model},
        healing=HEALING,
        share=share,
        scoring=SCORING,
        methods=("mean", "lowrank"),
        groups=(4,),
    )
    typer.echo(journey.run())


if __name__ == "__main__":
    typer.run(main)
