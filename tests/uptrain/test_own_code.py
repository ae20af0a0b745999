"""A checkpoint in code of our own goes through every stage, and its file of code with it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.uptrain import uptrain


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo", "bloom", "mpt", "opt"])
def test_converted_measured_trained_and_measured_again(make_checkpoint, configured, data, tmp_path: Path, model_type):
    names = {"mpt": {"intermediate_size": None}, "gpt_neo": {"attention_types": [[["global", "local"], 1]]}}
    source = make_checkpoint(model_type, rope_parameters=None, num_key_value_heads=None, **names.get(model_type, {}))
    converted = tmp_path / "gqa2"
    convert(source, converted, ConvertOptions(groups=2, method="lowrank"))
    file = f"modeling_gqa_{model_type}.py"
    (converted / file).write_text(
        (converted / file).read_text() + "\nraise SystemExit('code beside weights was run')\n"
    )
    # The parent is random and has nothing to teach, but the text has.
    result = uptrain(configured(checkpoint=str(converted), teacher="none", gradient_checkpointing=True))
    assert (result.output / file).read_text() == (converted / file).read_text()
    assert [stage["stage"] for stage in read_stages(result.output)] == ["convert", "uptrain"]
    assert "auto_map" in json.loads((result.output / "config.json").read_text())
    options = EvalOptions(data=str(data), window=16, dtype="float32", device="cpu")
    before, after, trained = evaluate([source, converted, result.output], options).rows
    assert (before.result.kv_cache.measured_bytes, before.result.kv_cache.agree) == (
        2 * after.result.kv_cache.measured_bytes,
        True,
    )
    assert (after.result.kv_cache.num_kv_heads, after.result.kv_cache.agree) == (2, True)
    assert trained.nll.value < after.nll.value
    changed = AutoModelForCausalLM.from_pretrained(result.output).state_dict()
    kept = AutoModelForCausalLM.from_pretrained(converted).state_dict()
    moved = {name for name in kept if not torch.equal(kept[name], changed[name])}
    assert any(".k_proj." in name for name in moved)
    assert any(".o_proj." in name for name in moved)
