"""A report in which everything was measured: blocks as the measurements shape them, laid over a real report."""

import math
from typing import Any

PERCENTILES = ("1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9", "100")


def with_all_blocks(report: dict[str, Any]) -> dict[str, Any]:
    """The object of a real report.json with every optional block filled in; figures follow the rows' own order."""
    rows = [_row(row, place, report["checkpoints"][0]["label"]) for place, row in enumerate(report["checkpoints"])]
    speed = {
        "bandwidth_bytes_per_second": 1.8e10,
        "attention": "sdpa",
        "dtype": "float32",
        "compiled": False,
        "cache": "static",
        "repeats": 5,
        "steps": 16,
        "words": ["At batch 1 and 512 tokens the weights are most of what moves: no gain is to be expected."],
    }
    return report | {"checkpoints": rows, "speed": speed}


def _row(row: dict[str, Any], place: int, first: str) -> dict[str, Any]:
    is_first = place == 0
    divergence = {
        "against": first,
        "kl_mean": 0.11 * place,
        "kl_standard_error": 0.004,
        "kl_percentiles": {each: 1e-4 * math.exp(float(each) / 12) * place for each in PERCENTILES},
        "top1_agreement": 0.9 - 0.1 * place,
        "top1_standard_error": 0.002,
        "tokens": 8160,
    }
    return row | {
        "contexts": [_context(window, place) for window in (128, 512, 2048)],
        "positions": [
            {"first": 2**k, "last": 2 ** (k + 1) - 1, "nll": 4 - 0.2 * k + 0.1 * place, "tokens": 100 * 2**k,
             "nll_above_first": None if is_first else place * (0.1 + 0.02 * k)}
            for k in range(10)
        ],
        "divergence": None if is_first else divergence,
        "recall": [
            {"length": length, "accuracy": max(0.05, 0.98 - 0.1 * place * step), "accuracy_standard_error": 0.02,
             "samples": 200, "chance": 0.125, "choice_nll": 0.2 * (1 + place)}
            for step, length in enumerate((128, 256, 512, 1024))
        ],
        "tasks": {
            "hellaswag": {"acc": {"value": 0.31 - 0.02 * place, "standard_error": 0.004},
                          "acc_norm": {"value": 0.35 - 0.02 * place, "standard_error": 0.004}},
            "arc_easy": {"acc": {"value": 0.41 - 0.03 * place, "standard_error": None}},
        },
        "continuations": [
            {"prompt": "def area(radius):\n    return ", "text": "3.14159 * radius ** 2\n" * (3 - place % 3)},
            {"prompt": "The quick brown fox", "text": " jumps over the lazy dog, and the dog sleeps on." * (1 + place)},
        ],
        "layers": [_layer(layer, place) for layer in range(6)],
        "speed": [_timing(batch, context, place) for batch in (1, 8) for context in (512, 4096)],
    }  # fmt: skip


def _layer(layer: int, place: int) -> dict[str, Any]:
    return {
        "layer": layer,
        "inputs": "first",
        "cosine": 1 - 0.02 * place * (layer + 1) / 2,
        "relative_error": 0.1 * place * (layer + 1),
        "cosine_as_run": 1 - 0.03 * place * (layer + 1) / 2,
        "relative_error_as_run": 0.15 * place * (layer + 1),
        "entropy": 2.1 + 0.05 * place,
        "entropy_first": 2.0 + 0.1 * place * layer,
    }


def _context(window: int, place: int) -> dict[str, Any]:
    nll = 3.4 - 0.1 * math.log2(window / 128) + 0.2 * place
    return {"window": window, "perplexity": math.exp(nll), "nll": nll, "nll_standard_error": 0.01, "tokens": 8000,
            "nll_above_first": 0.2 * place, "nll_above_first_standard_error": 0.01}  # fmt: skip


def _timing(batch: int, context: int, place: int) -> dict[str, Any]:
    cache = batch * context * 8192 / 4**place
    step = 2e-3 + cache / 1.2e10
    return {
        "batch": batch,
        "context": context,
        "prefill": {"median": 1e-4 * batch * context, "min": 0.9e-4 * batch * context, "max": 1.2e-4 * batch * context},
        "decode": {"median": step, "min": 0.97 * step, "max": 1.1 * step},
        "tokens_per_second": batch / step,
        "peak_bytes": int(3e8 + cache),
        "cache_bytes": int(cache),
        "roofline": 1e-3 + cache / 1.8e10,
        "weight_bytes": 18_000_000,
        "largest_batch": 64 * 4**place,
        "largest_batch_tried": None,
    }
