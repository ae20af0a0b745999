"""ONNX Runtime GenAI: its own model builder, its own tokenizer, a cache of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime_genai as og  # pyright: ignore[reportMissingImports] - in the engine's environment

from consumers.answering import Answer, answer_all


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """As `python -m onnxruntime_genai.models.builder -m CHECKPOINT -o DIR -p fp32 -e cpu` does."""
    build(checkpoint, work / "model", work / "cache")
    model = og.Model(str(work / "model"))
    tokenizer = og.Tokenizer(model)
    for prompt in prompts:
        tokens = [int(token) for token in tokenizer.encode(prompt)]
        options = og.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=len(tokens) + steps)
        generator = og.Generator(model, options)
        generator.append_tokens(tokens)
        scores = []
        while not generator.is_done():
            scores.append(generator.get_logits()[0, -1].tolist())
            generator.generate_next_token()
        continuation = [int(token) for token in generator.get_sequence(0)[len(tokens) :]]
        yield Answer(tokens=tokens, continuation=continuation, scores=scores)


def build(checkpoint: Path, output: Path, cache: Path) -> None:
    """Run the model builder."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint), "-o", str(output)]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"models.builder: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    answer_all(ask, "onnxruntime-genai", "onnxruntime")
