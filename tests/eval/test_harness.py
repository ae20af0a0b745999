"""lm-evaluation-harness is the oracle: its rolling log-likelihood and ours, on the same checkpoint and windows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.stream import StreamMaterial

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.mark.parametrize("max_length", [16, 63])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_rolling_log_likelihood(make_checkpoint, texts, tmp_path: Path, adds_bos: bool, max_length: int):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    open_harness: Any = HFLM  # a decorator hides its signature from type checkers

    checkpoint = make_checkpoint(adds_bos=adds_bos)
    harness = open_harness(
        pretrained=str(checkpoint),
        device="cpu",
        dtype="float32",
        batch_size=3,
        max_length=max_length,
        add_bos_token=False,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = EvalOptions(
        data=str(data), documents="separate", bos="first", window=max_length + 1, stride=max_length, dtype="float32"
    )
    (row,) = evaluate([checkpoint], options).rows
    material = row.subject.material
    assert isinstance(material, StreamMaterial)
    document = material.text.document
    ours = -np.bincount(document, weights=row.result.nlls)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    num_bytes = sum(len(text.encode()) for text in texts)
    assert row.sample.num_bytes == num_bytes
    assert row.bits_per_byte == pytest.approx(-sum(theirs) / num_bytes / np.log(2), rel=1e-6)
