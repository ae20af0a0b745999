"""Reports to show: a real one of two checkpoints, and the same with all that can be measured."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_report import with_all_blocks

from gqa.eval.document import Document
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;$\\frac{$\x00\x1b[31m\ud800\u202e日本"


@pytest.fixture(scope="session")
def real(checkpoint: Path, make_checkpoint: Callable[..., Path], data: Path) -> dict[str, Any]:
    """The object of a report.json as gqa-eval writes it. Not to be changed."""
    other = make_checkpoint("other", seed=1, num_key_value_heads=2)
    options = EvalOptions(data=str(data), window=16, dtype="float32", device="cpu")
    return evaluate([f"before={checkpoint}", f"after={other}"], options).to_dict()


@pytest.fixture(scope="session")
def whole(real: dict[str, Any]) -> dict[str, Any]:
    """The same with every block. Not to be changed."""
    history = {
        "conversions": [{"method": "lowrank", "kv_heads_before": [4, 4], "kv_heads_after": [2, 2],
                         "predicted_damage": [0.2, 0.31]}],
        "trainings": [{"objective": "text", "steps": 40, "tokens": 4000, "teacher": None,
                       "validation": [{"step": 0, "tokens": 0, "loss": 4.0}, {"step": 40, "tokens": 4000, "loss": 3.0}],
                       "loss": [{"step": k, "tokens": 100 * k, "loss": 4 - k / 40} for k in range(1, 41)]}],
    }  # fmt: skip
    report = with_all_blocks(real)
    report["checkpoints"][1]["history"] = history
    return report


@pytest.fixture(scope="session")
def hostile(whole: dict[str, Any]) -> dict[str, Any]:
    """Every text that a checkpoint, its data or its name can put into a report is an attack."""
    report = json.loads(json.dumps(whole))
    report["options"]["data"] = HOSTILE
    report["notes"] = [HOSTILE]
    report["command"] = [HOSTILE]
    report["method"] = [f"Data: `{HOSTILE}`."]
    for row in report["checkpoints"]:
        row |= {"label": f"{row['label']}{HOSTILE}", "path": HOSTILE, "fingerprint": HOSTILE, "model_type": HOSTILE}
        row |= {"dtype": HOSTILE, "stored_dtype": f"{HOSTILE}16"}
        row["kv_cache"]["dtype"] = HOSTILE
        row["tasks"] = {HOSTILE: {HOSTILE: {"value": 0.5, "standard_error": None}}}
        row["continuations"] = [{"prompt": HOSTILE, "text": HOSTILE}]
        if row["divergence"]:
            row["divergence"]["against"] = HOSTILE
    report["speed"]["words"] = [HOSTILE]
    return report


@pytest.fixture(scope="session")
def many(whole: dict[str, Any]) -> dict[str, Any]:
    """Twelve checkpoints with long names."""
    report = json.loads(json.dumps(whole))
    row = report["checkpoints"][1]
    for number in range(10):
        label = f"experiments/2026-11-25/llama-lowrank-fitted-{number}-of-twelve-checkpoints-to-compare"
        ratio = row["perplexity_ratio"] * (1 + number / 10)
        report["checkpoints"].append(row | {"label": label, "perplexity_ratio": ratio})
    return report


@pytest.fixture(scope="session")
def page_of() -> Callable[[dict[str, Any]], str]:
    """The text of report.html for the object of a report.json; made once for each."""
    from gqa.eval.page.page import to_html

    @functools.cache
    def made(text: str) -> str:
        return to_html(Document.model_validate(json.loads(text)), text)

    return lambda report: made(json.dumps(report))
