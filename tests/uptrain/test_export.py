"""The finished checkpoint: the input's own, but for the values of its weights."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.state_dict_saver as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.convert.provenance import fingerprint, new_stage, write_stages
from gqa.uptrain import uptrain
from gqa.uptrain.checkpoints import without_warnings
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.export import plan_export
from gqa.uptrain.model import load_model
from gqa.uptrain.saved import SavedWeights

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),  # fused in memory, one by one on disk
    ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16}),
    ("phi", {}),
]


def listed(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".safetensors"}


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_an_untrained_model_comes_back_bit_for_bit(
    make_checkpoint, configured, tmp_path: Path, family: str, config: dict
):
    source = make_checkpoint(family, dtype=torch.bfloat16, **config)
    model = load_model(source, configured())
    export = plan_export(model, source, tmp_path / "out", "auto", overwrite=False)
    named = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}  # as the objective calls them
    with without_warnings():
        dcp.save({"model": named}, checkpoint_id=tmp_path / "saved", no_dist=True)
    export.write(model, SavedWeights(tmp_path / "saved"), {})
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, torch.equal(after[name], tensor)) == (torch.bfloat16, True), name
    files = listed(tmp_path / "out")
    del files["gqa.json"]
    assert files == listed(source)


def test_a_run_ends_in_a_complete_checkpoint(configured, checkpoint: Path):
    before = listed(checkpoint)
    umask = os.umask(0o027)
    try:
        result = uptrain(configured())
    finally:
        os.umask(umask)
    assert listed(checkpoint) == before
    files = listed(result.output)
    stages = json.loads(files.pop("gqa.json"))["stages"]
    assert files == before  # config, tokenizer, generation config, licence: byte for byte
    assert {stat.S_IMODE(path.stat().st_mode) for path in result.output.iterdir()} == {0o640}
    assert stat.S_IMODE(result.output.stat().st_mode) == 0o750
    (stage,) = stages
    assert stage["stage"] == "uptrain"
    assert stage["source"] == {"path": str(checkpoint), "fingerprint": fingerprint(checkpoint)}
    assert (stage["steps"], stage["tokens"], stage["validation"]) == (6, 768, result.validation)
    assert stage["config"]["learning_rate"] == 1e-2
    assert stage["hub_data"] == []
    model: Any = AutoModelForCausalLM.from_pretrained(result.output)
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    ids = tokenizer("abc", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, ids.shape[1] + 4)


def test_provenance_goes_on_from_the_conversion(make_checkpoint, configured):
    source = make_checkpoint()
    write_stages(source, [new_stage("convert", source, method="mean")])
    result = uptrain(configured(checkpoint=str(source), max_steps=1))
    stages = json.loads((result.output / "gqa.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["convert", "uptrain"]
    assert stages[0] == json.loads((source / "gqa.json").read_text())["stages"][0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_is_the_one_asked_for(configured, checkpoint: Path, dtype: str):
    kind = getattr(torch, dtype)
    result = uptrain(configured(dtype=dtype, max_steps=1))
    assert {tensor.dtype for tensor in load_file(result.output / "model.safetensors").values()} == {kind}
    before, after = (json.loads((path / "config.json").read_text()) for path in (checkpoint, result.output))
    changed = {} if dtype == "float32" else {"dtype": dtype, "torch_dtype": dtype}
    assert after == before | changed
    assert AutoModelForCausalLM.from_pretrained(result.output).dtype == kind


def test_the_old_spelling_of_rope_survives(make_checkpoint, configured):
    source = make_checkpoint()
    config = json.loads((source / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    (source / "config.json").write_text(json.dumps(config))
    result = uptrain(configured(checkpoint=str(source), max_steps=1))
    assert json.loads((result.output / "config.json").read_text()) == config


def test_tensors_keep_their_own_types_and_what_is_not_trained_is_copied(make_checkpoint, configured):
    source = make_checkpoint(tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights = {name: tensor.bfloat16() if "mlp" in name else tensor for name, tensor in weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # tied, and stored twice all the same
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.5])  # as old checkpoints have it
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    result = uptrain(configured(checkpoint=str(source), max_steps=1))
    after = load_file(result.output / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: item.dtype for name, item in weights.items()
    }
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], weights["lm_head.weight"])
    assert after["model.layers.0.self_attn.rotary_emb.inv_freq"].tolist() == [1.0, 0.5]


def test_a_pickled_checkpoint_becomes_safetensors(make_checkpoint, configured):
    source = make_checkpoint()
    weights = load_file(source / "model.safetensors")
    torch.save(weights, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    result = uptrain(configured(checkpoint=str(source), max_steps=1))
    assert load_file(result.output / "model.safetensors").keys() == weights.keys()
    assert not list(result.output.glob("*.bin"))


def test_what_cannot_be_written_back_is_refused_before_training(
    make_checkpoint, configured: Callable[..., UptrainConfig], monkeypatch
):
    source = make_checkpoint("mixtral", num_local_experts=4, num_experts_per_tok=2)
    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", lambda _, weights: weights)
    config = configured(checkpoint=str(source))
    with pytest.raises(UserError, match=r"holds model\.layers.* in memory in a form that it can't give back"):
        uptrain(config)
    assert config.output
    assert not config.output.exists()
    assert not config.output.with_name("out.run").exists()
