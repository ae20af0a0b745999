"""mlx-lm on the CPU, which reads the checkpoint as it is."""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx  # pyright: ignore[reportMissingImports] - in the engine's environment
import numpy as np
from mlx_lm import load  # pyright: ignore[reportMissingImports]
from mlx_lm.generate import generate_step  # pyright: ignore[reportMissingImports]

from consumers.answering import Answer, answer_all


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """In float32, on the CPU wherever it runs."""
    del work
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(checkpoint))
    model.set_dtype(mx.float32)
    for prompt in prompts:
        tokens = tokenizer.encode(prompt)
        stream = generate_step(mx.array(tokens), model, max_tokens=steps)  # greedy, with a cache
        continuation = [int(token) for token, _ in stream]
        logits = model(mx.array([tokens + continuation[:-1]]))[0, len(tokens) - 1 :]  # [steps, vocab]
        yield Answer(tokens=tokens, continuation=continuation, scores=np.array(logits).tolist())


if __name__ == "__main__":
    answer_all(ask, "mlx-lm", "mlx")
