"""llama.cpp: a GGUF by the converter that comes with its Python bindings' source, served over HTTP on this machine."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xllamacpp  # pyright: ignore[reportMissingImports] - in the engine's environment

from consumers.answering import Answer, answer_all

CONVERT = Path(sys.prefix) / "llama.cpp" / "convert_hf_to_gguf.py"
KNOWING_THE_TOKENIZER = """
import runpy, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda model, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The converter knows the tokenizers of published models by a hash of what they make of a text. Those of models trained
for this test are none of them; they cut words as GPT-2's does, and that is all that is said here."""


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """As `convert_hf_to_gguf.py CHECKPOINT --outfile FILE --outtype f32` and `llama-server -m FILE` do."""
    file = work / "model.gguf"
    convert(checkpoint, file)
    return served(file, prompts, steps)


def served(file: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """The answers of a server that has the file."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    for prompt in prompts:
        yield asked(server.listening_address, prompt, steps)
    del server


def convert(checkpoint: Path, file: Path) -> None:
    """Run the converter, with one answer put into its mouth."""
    start = f"import sys; sys.argv = {[str(CONVERT), str(checkpoint), '--outfile', str(file), '--outtype', 'f32']!r}"
    code = start + KNOWING_THE_TOKENIZER.format(folder=str(CONVERT.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"convert_hf_to_gguf.py: {done.stderr.strip().splitlines()[-1]}")


def asked(address: str, prompt: str, steps: int) -> Answer:
    """Tokens and log-probabilities of a greedy continuation, from a server."""
    tokens = post(f"{address}/tokenize", {"content": prompt, "add_special": True})["tokens"]
    settings = {"n_predict": steps, "temperature": 0, "n_probs": 1 << 20, "cache_prompt": False}
    said = post(f"{address}/completion", {"prompt": tokens, **settings})["completion_probabilities"]
    scores = [[row["logprob"] for row in sorted(step["top_logprobs"], key=lambda row: row["id"])] for step in said]
    return Answer(tokens=tokens, continuation=[step["id"] for step in said], scores=scores, normalised=True)


def post(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    answer_all(ask, "xllamacpp")
