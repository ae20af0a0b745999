"""A latent in a GGUF file: each of its tensors against the stock class's. llama.cpp itself: `make test-consumers`."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from edits import edit_config, edit_tensors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.errors import UserError
from gqa.convert.export.latent import has_plain_queries
from gqa.convert.export.options import ExportOptions
from gqa.convert.export.writing import export_gguf
from gqa.convert.latent.plan import LatentOptions
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.plan import ConvertOptions

RANK, ROPE, STILL, HEADS, HIDDEN = 16, 8, 8, 4, 32


@pytest.fixture
def latent(make_checkpoint, calibration_text: Path, tmp_path: Path):
    def make(**config: Any) -> Path:
        calibration = CalibrationOptions(
            data=str(calibration_text), tokens=256, held_out_tokens=64, sequence_length=16, device="cpu"
        )
        options = ConvertOptions(groups=1, method="lowrank", calibration=calibration)
        sizes = LatentOptions(kv_rank=RANK, rope_dim=ROPE, model_type="deepseek_v3")
        convert_latent(make_checkpoint(**config), tmp_path / "latent", sizes, options)
        return tmp_path / "latent"

    return make


def written(directory: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the file says, and its tensors as float32."""
    file = directory.parent / "model.gguf"
    export_gguf(ExportOptions(directory=directory, output=file, **options))
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    return said, {item.name: torch.tensor(gguf.dequantize(item.data, item.tensor_type)) for item in reader.tensors}


def test_the_file_says_how_large_the_cache_is_and_that_there_are_no_experts(latent):
    said, _ = written(latent(rope_parameters={"rope_type": "default", "rope_theta": 54321.0}))
    assert said["general.architecture"] == "deepseek2"
    found = {name.removeprefix("deepseek2."): value for name, value in said.items()}
    assert (found["attention.key_length"], found["attention.value_length"]) == (RANK + ROPE, RANK)
    assert (found["attention.key_length_mla"], found["attention.value_length_mla"]) == (STILL + ROPE, STILL)
    assert (found["attention.head_count"], found["attention.head_count_kv"]) == (HEADS, 1)
    assert (found["attention.kv_lora_rank"], found["attention.q_lora_rank"]) == (RANK, HIDDEN)
    assert (found["rope.dimension_count"], found["rope.freq_base"]) == (ROPE, 54321.0)
    assert (found["leading_dense_block_count"], found["block_count"]) == (2, 2)
    assert "expert_count" not in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_space_that_is_asked_for_is_what_its_tensors_take(dtype, latent, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("gqa.convert.export.writing.check_space", lambda _, size: asked.append(size))
    directory = latent()
    written(directory, dtype=dtype)
    reader = gguf.GGUFReader(directory.parent / "model.gguf")
    assert asked == [sum(int(item.n_bytes) for item in reader.tensors)]


def test_its_tensors_compute_what_the_class_does(latent):
    directory = latent()
    _, tensors = written(directory)
    layer = AutoModelForCausalLM.from_pretrained(directory).model.layers[1]
    attention, own = layer.self_attn, {name.removeprefix("blk.1."): item for name, item in tensors.items()}
    states = layer.input_layernorm(torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(2)))
    low = torch.nn.functional.rms_norm(states @ own["attn_q_a.weight"].T, (HIDDEN,)) * own["attn_q_a_norm.weight"]
    torch.testing.assert_close(low @ own["attn_q_b.weight"].T, attention.q_proj(states), rtol=1e-4, atol=1e-4)
    assert torch.equal(own["attn_kv_a_mqa.weight"], attention.kv_a_proj_with_mqa.weight)
    normed = attention.kv_a_layernorm(states @ own["attn_kv_a_mqa.weight"][:RANK].T)
    keys = torch.einsum("tr,hrn->thn", normed, own["attn_k_b.weight"])
    values = torch.einsum("tr,hnr->thn", normed, own["attn_v_b.weight"])
    wanted = attention.kv_b_proj(normed).unflatten(1, (HEADS, -1))
    torch.testing.assert_close(torch.cat([keys, values], dim=2), wanted)
    assert "attn_q.weight" not in own
    assert "attn_kv_b.weight" not in own


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_rounded_of_the_norm_that_is_undone_is_put_right_behind_it(latent, dtype):
    directory = latent()
    _, tensors = written(directory, dtype=dtype)
    undone, done = tensors["blk.0.attn_q_a.weight"], tensors["blk.0.attn_q_a_norm.weight"]
    norm = AutoModelForCausalLM.from_pretrained(directory).model.layers[0].input_layernorm.weight
    assert not torch.equal(undone.diagonal() * norm, torch.ones(HIDDEN))
    torch.testing.assert_close(undone.diagonal() * done, torch.ones(HIDDEN), rtol=1e-6, atol=0)
    assert undone.count_nonzero() == HIDDEN


@pytest.mark.parametrize(
    ("layers", "vocabulary", "plain"), [(26, 320, 1), (27, 320, 1), (48, 128256, 1), (48, 320, 0), (28, 128256, 0)]
)
def test_by_its_sizes_llama_cpp_knows_who_has_plain_queries(layers, vocabulary, plain):
    sizes = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    assert has_plain_queries(AutoConfig.for_model("deepseek_v3", **sizes)) == plain


def test_where_llama_cpp_wants_plain_queries_they_are(latent):
    said, tensors = written(latent(num_hidden_layers=26))
    assert "deepseek2.attention.q_lora_rank" not in said
    assert "blk.7.attn_q.weight" in tensors
    assert "blk.7.attn_q_a.weight" not in tensors


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"kv_lora_rank": 20}, r"kv_a_layernorm\.weight"),
        ({"qk_nope_head_dim": 12}, r"kv_b_proj\.weight"),
        ({"v_head_dim": 12}, r"kv_b_proj\.weight"),
    ],
)
def test_weights_of_another_configuration_are_refused(changes, name, latent):
    directory = latent()
    edit_config(directory, **changes)
    with pytest.raises(UserError, match=rf"has tensors of the wrong shape: model\.layers\.0\.self_attn\.{name}"):
        written(directory)
    assert not list(directory.parent.glob("*.gguf"))


@pytest.mark.parametrize(("value", "dtype"), [(0.0, "float32"), (1e-6, "float16"), (1e9, "float16")])
def test_a_norm_that_can_not_be_undone_is_refused(value, dtype, latent):
    directory = latent()
    edit_tensors(directory, lambda tensors: tensors["model.layers.1.input_layernorm.weight"][3].fill_(value))
    with pytest.raises(UserError, match=rf"layers\.1\.input_layernorm.* has zeros, or .* for {dtype}"):
        written(directory, dtype=dtype)
    assert not list(directory.parent.glob("*.gguf"))
