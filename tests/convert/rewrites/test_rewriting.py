"""How a rewrite reads a checkpoint and what it writes: names, rounding, memory, and what it refuses."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions, layer_moments
from gqa.convert.checkpoint import open_checkpoint
from gqa.convert.cli import app
from gqa.convert.derived import DerivedEntry
from gqa.convert.errors import UserError
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.formulas import halves, norm_in_bias, norm_in_weight, of_heads
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.provenance import read_stages
from gqa.convert.renaming import Renaming
from gqa.convert.rewrite import convert
from gqa.convert.rewriting import Rewrite, rewrite_of
from gqa.convert.staged import StagedModel
from gqa.convert.tensors import TensorEntry

IDS = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(7))


def edit_config(checkpoint: Path, **changes) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    (checkpoint / "config.json").write_text(json.dumps(config))


def edit_tensors(checkpoint: Path, change) -> None:
    tensors = change(load_file(checkpoint / "model.safetensors"))
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "model_type",
    [name for name, entry in REWRITTEN.items() if not entry.own_code and not isinstance(rewrite_of(name), Renaming)],
)
def test_what_is_left_out_of_a_config_is_as_in_the_class(model_type):
    theirs = AutoConfig.for_model(model_type)
    unlike = {"attn_config", "rope_parameters", "rope_scaling", "rotary_emb_base", "rotary_pct", "word_embed_proj_dim"}
    rewrite = rewrite_of(model_type)
    assert isinstance(rewrite, Rewrite)
    for key, value in rewrite.defaults.items():
        if key not in unlike:
            found = getattr(theirs, key)
            assert (found, type(found)) == (value, type(value)), key


def test_rotary_settings_left_out_are_as_in_the_class(saved, load):
    checkpoint = saved("gpt_neox", rope_parameters=None)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["rope_parameters"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert (
        open_checkpoint(checkpoint).config["rope_parameters"] == AutoConfig.from_pretrained(checkpoint).rope_parameters
    )
    edit_config(checkpoint, rotary_emb_base=777, rotary_pct=0.5, rope_scaling={"type": "linear", "factor": 2.0})
    ours, theirs = open_checkpoint(checkpoint).config["rope_parameters"], AutoConfig.from_pretrained(checkpoint)
    assert {key: ours[key] for key in theirs.rope_parameters} == theirs.rope_parameters


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "gpt2", "opt", "gpt_neo", "xglm"])
def test_names_of_other_days(name, saved, tmp_path, state_of):
    """Without the base model's prefix, with buffers that are computed today, in a pickle, NeoX's head renamed."""
    checkpoint = saved(name)
    rewrite = rewrite_of(name)
    assert isinstance(rewrite, Rewrite)
    heads = open_checkpoint(checkpoint).shape.num_heads
    convert(checkpoint, tmp_path / "expected", ConvertOptions(groups=heads))
    layer = rewrite.layer_prefix.format(layer=1).removesuffix(".")
    computed = {f"{layer}{ending}": torch.ones(2) for ending in rewrite.computed if ending.startswith(".")}
    bare = {key.removeprefix(rewrite.base_prefix): value for key, value in state_of(checkpoint).items()} | computed
    if "embed_out.weight" in bare:
        bare["lm_head.weight"] = bare.pop("embed_out.weight")
    (checkpoint / "model.safetensors").unlink()
    torch.save(bare, checkpoint / "pytorch_model.bin")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=heads))
    expected, found = state_of(tmp_path / "expected"), state_of(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(
    ("name", "embedding", "head"),
    [
        ("gpt2", "transformer.wte.weight", "lm_head.weight"),
        ("gpt_neox", "gpt_neox.embed_in.weight", "embed_out.weight"),
        ("gpt_neox-sequential", "gpt_neox.embed_in.weight", "embed_out.weight"),
        ("opt", "model.decoder.embed_tokens.weight", "lm_head.weight"),
        ("xglm", "model.embed_tokens.weight", "lm_head.weight"),
    ],
)
def test_tied_heads_on_disk_or_not(name, embedding, head, twice, saved, headless_named, tmp_path, load):
    checkpoint = saved(name, tie_word_embeddings=True)
    if twice:
        edit_tensors(checkpoint, lambda tensors: tensors | {head: tensors[embedding].clone()})
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4))
    with torch.no_grad():
        off = (load(tmp_path / "out")(IDS).logits - load(checkpoint)(IDS).logits).abs().max()
    assert off < headless_named(name).tolerance


def test_what_stays_what_it_is_is_moved_as_bytes(saved):
    plan = plan_conversion(saved("gpt_neox"), ConvertOptions(groups=2))
    copied = {tensor.name for tensor in plan.tensors if isinstance(tensor.source, TensorEntry)}
    assert "model.embed_tokens.weight" in copied
    assert "lm_head.weight" in copied
    assert {name.removeprefix("model.layers.1.") for name in copied if "layers.1." in name} == {
        "self_attn.dense.weight",
        "self_attn.dense.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
    }


def test_one_computed_tensor_at_a_time_is_in_memory(saved, tmp_path, monkeypatch):
    """Beside the layer that merges: what is computed lives until it is written."""
    checkpoint = saved("gpt_neox", num_hidden_layers=6)
    alive: dict[int, int] = {}
    peaks: list[int] = []
    load = DerivedEntry.load

    def counted(entry: DerivedEntry):
        tensor = load(entry)
        alive[id(tensor)] = tensor.nbytes
        weakref.finalize(tensor, alive.pop, id(tensor), None)
        peaks.append(sum(alive.values()))
        return tensor

    monkeypatch.setattr(DerivedEntry, "load", counted)
    plan = convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    layer = [tensor for tensor in plan.tensors if tensor.name.startswith("model.layers.0.")]
    assert len(peaks) > 6 * 6
    assert max(peaks) <= sum(tensor.nbytes for tensor in layer)


def test_a_scaled_embedding_is_written_in_pieces(saved, tmp_path, state_of, monkeypatch):
    checkpoint = saved("xglm")
    convert(checkpoint, tmp_path / "whole", ConvertOptions(groups=4))
    monkeypatch.setattr("gqa.convert.writer._CAST_ELEMENTS", 7 * 48 + 5)
    convert(checkpoint, tmp_path / "pieces", ConvertOptions(groups=4))
    whole, pieces = state_of(tmp_path / "whole"), state_of(tmp_path / "pieces")
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    entry = open_checkpoint(checkpoint).entries["transformer.wte.weight"]
    assert [len(piece) for piece in entry.pieces(7 * 48 + 5)] == [7] * 13 + [5]


def test_casting_up_computes_in_the_wider_dtype(saved, tmp_path, state_of):
    checkpoint = saved("gpt_neox", torch.bfloat16)
    half = state_of(checkpoint)
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4, dtype="float32"))
    found = state_of(tmp_path / "out")["model.layers.0.mlp.fc1.weight"]
    prefix = "gpt_neox.layers.0."
    weight, norm = (
        half[prefix + name].float() for name in ("mlp.dense_h_to_4h.weight", "post_attention_layernorm.weight")
    )
    assert torch.equal(found, weight * norm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folded_norms_are_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 8, generator=generator).to(dtype)
    norm, bias = torch.randn(8, generator=generator).to(dtype), torch.randn(24, generator=generator).to(dtype)
    assert torch.equal(norm_in_weight(weight, norm), (weight.double() * norm.double()).to(dtype))
    assert torch.equal(norm_in_bias(weight, norm, bias), (weight.double() @ norm.double() + bias.double()).to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-12), (torch.float16, 1e-3)])
def test_small_norm_weights_lose_nothing_in_half_precision(saved, tmp_path, dtype, tolerance):
    """Nemotron adds 1 to them, which in bfloat16 would cost a weight of 0.01 a fifth of its value."""

    def shrink(tensors):
        generator = torch.Generator().manual_seed(3)
        for name in (name for name in tensors if "norm" in name and name.endswith(".weight")):
            sizes = 10 ** torch.empty(48).uniform_(-3, 1, generator=generator)
            tensors[name] = (sizes * torch.randn(48, generator=generator).sign()).to(dtype)
            tensors[name][0] = 0
        return tensors

    checkpoint = saved("gpt_neox-sequential-plain", dtype)
    edit_tensors(checkpoint, shrink)
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4))
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        for path in (checkpoint, tmp_path / "out")
    ]
    with torch.no_grad():
        assert (models[0](IDS).logits - models[1](IDS).logits).abs().max() < tolerance


def test_rows_of_heads_and_rotary_halves():
    rows = torch.arange(2 * 3 * 4)  # two heads of q, k, v of four components
    assert of_heads("k", 2)(rows).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert halves(2, 4)(torch.arange(12)).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("opt", {"do_layer_norm_before": False}, "norms behind the layers .* opt-350m"),
        ("opt", {"word_embed_proj_dim": 24}, "embeddings of 24 for hidden states of 48"),
        ("gpt_neo", {"window_size": 32}, "look back 32 tokens of 64 can't become a gpt_bigcode"),
        ("gpt_neox-plain", {"num_attention_heads": 8}, "heads of which 3 components rotate"),
        ("gpt2", {"add_cross_attention": True}, "gpt2 with add_cross_attention can't be converted"),
    ],
)
def test_models_that_no_class_can_hold(name, overrides, says, saved):
    with pytest.raises(UserError, match=says):
        open_checkpoint(saved(name, **overrides))


def test_gpt_neo_converts_as_a_model_of_short_texts(saved, tmp_path, load):
    checkpoint = saved("gpt_neo", window_size=16)
    edit_config(checkpoint, max_position_embeddings=16)
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4))
    edit_config(checkpoint, max_position_embeddings=64)
    model = load(tmp_path / "out")
    ids = torch.randint(3, 96, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(ids).logits - load(checkpoint)(ids).logits).abs().max() < 2e-5
    assert model.config.n_positions == 16


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_head": "4"}, "n_head is '4', not a positive integer"),
        ({"n_embd": 0}, "n_embd is 0, not a positive integer"),
        ({"n_head": 5}, r"the shapes of h.0.attn.c_attn.weight \[48, 144\] are not what config.json implies"),
        ({"n_layer": 2}, "the checkpoint has 12 tensors that gpt2 with its config.json does not have, h.2."),
        ({"n_layer": 4}, "tensor transformer.h.3.attn.c_attn.weight is missing from the checkpoint"),
        ({"n_embd": 96}, r"transformer.h.0.attn.c_attn.\w+ has shape \[144.*\], but config.json implies"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "brings its own code"),
    ],
)
def test_configurations_that_do_not_fit(changes, says, saved):
    checkpoint = saved("gpt2")
    edit_config(checkpoint, **changes)
    with pytest.raises(UserError, match=says):
        plan_conversion(checkpoint, ConvertOptions(groups=1))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt_neox", {"rope_scaling": "linear"}),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": "0.25"}}),
        ("gpt_neo", {"attention_types": [["global"]]}),
        ("gptj", {"rotary_dim": 5}),
    ],
)
def test_settings_of_another_kind(name, changes, saved):
    checkpoint = saved(name)
    edit_config(checkpoint, **changes)
    with pytest.raises(UserError, match=r"restore it$"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(("name", "groups"), [("gpt2", 3), ("xglm", 2), ("gpt_neox", 3), ("gpt_neox", 8)])
def test_numbers_of_heads_that_the_class_has_no_place_for(name, groups, saved):
    with pytest.raises(UserError, match=r"choose one of 1, 4$" if name == "xglm" else r"choose one of 1, 2, 4$"):
        plan_conversion(saved(name), ConvertOptions(groups=groups))


def test_calibration_sees_what_enters_the_rewritten_projections(saved, tmp_path):
    """The moments that the merge works on belong to the weights that it works on: norms are folded into both."""
    checkpoint = saved("gpt_neox")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4))
    both = [
        list(layer_moments(StagedModel(path, dtype=torch.float64, device=torch.device("cpu")), IDS))
        for path in (checkpoint, tmp_path / "out")
    ]
    for (_, left), (_, right) in zip(*both, strict=True):
        assert torch.equal(left.xx, right.xx)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2"])
def test_fitting(name, saved, tmp_path, calibration_text, make_tokenizer, load):
    checkpoint = saved(name, torch.float32, vocab_size=320)
    make_tokenizer().save_pretrained(checkpoint)
    calibration = CalibrationOptions(data=str(calibration_text), tokens=512, held_out_tokens=256, sequence_length=32)
    options = ConvertOptions(groups=1, method="lowrank", calibration=calibration, fit=FitOptions(steps=40))
    convert(checkpoint, tmp_path / "out", options)
    for layer in read_stages(tmp_path / "out")[-1]["layers"]:
        assert layer["fit"]["held_out_after"] <= layer["fit"]["held_out_before"]
    assert any(layer["fit"]["steps"] for layer in read_stages(tmp_path / "out")[-1]["layers"])
    assert load(tmp_path / "out")(IDS).logits.isfinite().all()


def test_the_command_says_what_comes_out_and_the_record_keeps_it(saved):
    checkpoint = saved("gpt_neox", torch.float32)
    result = CliRunner().invoke(app, ["-g", "4", str(checkpoint)])
    assert result.exit_code == 0, result.output
    said = "gpt_neox has no KV heads in transformers; the output is a phi checkpoint, equal up to rounding."
    assert result.stdout.startswith(said)
    assert "4 KV heads, none of them merged" in result.stdout
    output = checkpoint.with_name("ckpt-gqa4")
    (stage,) = read_stages(output)
    assert (stage["rewritten_from"], stage["model_type"]) == ("gpt_neox", "phi")
    result = CliRunner().invoke(app, ["-g", "2", str(output), "--json"])
    assert (json.loads(result.stdout)["rewritten_from"], json.loads(result.stdout)["model_type"]) == (None, "phi")
    result = CliRunner().invoke(app, [str(checkpoint), "--dry-run"])
    assert said.removesuffix(".") + " but for the heads that merge." in result.stdout
    result = CliRunner().invoke(app, [str(checkpoint), "-g", "4", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "Recommended: mean with 4 KV heads, predicted damage 0.00." in result.stdout
    assert "--fit" not in result.stdout
