"""llama.cpp again, with the GGUF that `gqa-export` writes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from consumers.answering import Answer, answer_all
from consumers.engines.run_llama_cpp import served


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """As `gqa-export gguf CHECKPOINT FILE --dtype float32` and `llama-server -m FILE` do."""
    file = work / "model.gguf"
    command = [os.environ["PROJECT_PYTHON"], "-m", "gqa.convert.export", "gguf", str(checkpoint), str(file)]
    done = subprocess.run([*command, "--dtype", "float32"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"gqa-export: {done.stderr.strip().splitlines()[-1]}")
    return served(file, prompts, steps)


if __name__ == "__main__":
    answer_all(ask, "xllamacpp")
