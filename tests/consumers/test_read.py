"""Engines that are read, not run: what their model code takes from config.json stands in ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from consumers.read import EXPECTED, Reading, missing

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

MADE_FROM: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}},
    "phi": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 54321},
    "deepseek_v3": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}},
}


@pytest.mark.parametrize("reading", EXPECTED, ids=lambda reading: f"{reading.engine}-{reading.model_type}")
def test_every_setting_is_where_the_engine_looks(
    reading: Reading, make_checkpoint: Callable[..., Path], calibration_text: Path, tmp_path: Path
):
    source = make_checkpoint(**{"model_type": reading.model_type} | MADE_FROM[reading.model_type])
    output = tmp_path / "out"
    if reading.model_type == "deepseek_v3":
        text = str(calibration_text)
        calibration = CalibrationOptions(data=text, tokens=256, held_out_tokens=64, sequence_length=16, device="cpu")
        options = ConvertOptions(groups=1, method="lowrank", calibration=calibration)
        convert_latent(source, output, LatentOptions(kv_rank=8, model_type="deepseek_v3"), options)
    else:
        convert(source, output, ConvertOptions(groups=2))
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == reading.model_type
    assert list(missing(reading, config)) == []
    assert (config["num_key_value_heads"], config["rope_theta"]) == (4 if "kv_lora_rank" in config else 2, 54321)
    assert config["torch_dtype"] == config["dtype"] == "float32"


def test_what_is_missing_is_named():
    config = dict.fromkeys(EXPECTED[0].keys, 1) | {"rope_parameters": {}}
    del config["torch_dtype"]
    assert list(missing(EXPECTED[0], config)) == ["rope_parameters.rope_theta", "torch_dtype"]
