"""What a step of decoding takes in llama.cpp, an engine that works on the latent itself: beside heads, merged or not.

Random models of one size, written by transformers, exported by gqa-export in float16 and served by llama.cpp on this
machine's CPU with its own defaults: multi-head, and grouped-query and latent with caches of the same bytes. The server
times a prompt, and the tokens behind it. Needs `pip install xllamacpp`, llama.cpp's bindings.

    taskset -c 1 python benchmarks/mla_engines.py
"""

import json
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from gqa.convert.export.options import ExportOptions
from gqa.convert.export.writing import export_gguf
from gqa.convert.latent.target import LatentShape
from gqa.recipes.demo.corpus import TRAIN, write_corpus
from gqa.recipes.demo.scratch import SPECIAL_TOKENS, write_random_checkpoint

SIZE = 64


def configurations(hidden: int, layers: int, groups: int, longest: int) -> dict[str, Any]:
    """By name: multi-head, and grouped-query and latent with as many numbers as `groups` KV heads have."""
    heads, cached = hidden // SIZE, 2 * groups * SIZE
    common: dict[str, Any] = {
        "vocab_size": 2048,
        "hidden_size": hidden,
        "intermediate_size": 11 * hidden // 4,
        "num_hidden_layers": layers,
        "max_position_embeddings": longest,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        **SPECIAL_TOKENS,
    }
    latent = LatentShape(
        model_type="deepseek_v3",
        hidden_size=hidden,
        num_heads=heads,
        kv_rank=cached - SIZE,
        rope_dim=SIZE,
        still_dim=SIZE,
        head_dim=SIZE,
        query_bias=False,
    ).settings(layers)
    by_heads = {"num_attention_heads": heads, "head_dim": SIZE}
    return {
        "multi-head": AutoConfig.for_model("llama", **common, **by_heads, num_key_value_heads=heads),
        "grouped-query": AutoConfig.for_model("llama", **common, **by_heads, num_key_value_heads=groups),
        "latent": AutoConfig.for_model(**latent, **common),
    }


@contextmanager
def served(file: Path, longest: int, threads: int) -> Iterator[str]:
    """The address of a server that has the file."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = longest, 1, True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def timings(address: str, context: int, steps: int, repeats: int) -> tuple[float, list[float]]:
    """Milliseconds of a token of a prompt of `context` tokens, and of one behind it, `repeats` times."""
    prompt = [1 + 7 * place % 2000 for place in range(context)]
    asked = {"prompt": prompt, "n_predict": steps, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
    found = [_post(f"{address}/completion", asked)["timings"] for _ in range(repeats)]  # the prompt is there by then
    return found[0]["prompt_per_token_ms"], [one["predicted_per_token_ms"] for one in found]


def _post(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return json.load(answer)


def main(
    hidden: Annotated[int, typer.Option(help="hidden_size; heads have 64 components.")] = 1024,
    layers: int = 4,
    groups: Annotated[int, typer.Option(help="KV heads whose cache is also the latent's.")] = 2,
    context: Annotated[list[int] | None, typer.Option(help="[default: 512, 2048, 8192]")] = None,
    steps: int = 16,
    repeats: int = 5,
    threads: int = 1,
) -> None:
    """Time every model at every context and print the table."""
    contexts = context or [512, 2048, 8192]
    longest = max(contexts) + 2 * steps
    shown = Table("attention", "cache a token", "context", "prompt, ms a token", "decoding, ms a token", "min-max")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder)
        for kind, config in configurations(hidden, layers, groups, longest).items():
            checkpoint, file = folder / kind, folder / f"{kind}.gguf"
            checkpoint.mkdir()
            write_random_checkpoint(checkpoint, folder / TRAIN, config)
            export_gguf(ExportOptions(directory=checkpoint, output=file, dtype="float16"))
            numbers = 2 * SIZE * {"multi-head": hidden // SIZE}.get(kind, groups)
            with served(file, longest, threads) as address:
                for length in contexts:
                    prompt, steps_taken = timings(address, length, steps, repeats)
                    shown.add_row(
                        kind,
                        f"{2 * numbers * layers:,} B",
                        f"{length:,}",
                        f"{prompt:.2f}",
                        f"{statistics.median(steps_taken):.2f}",
                        f"{min(steps_taken):.2f}-{max(steps_taken):.2f}",
                    )
    Console(width=110).print(shown)


if __name__ == "__main__":
    typer.run(main)
