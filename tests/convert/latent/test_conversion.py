"""Conversions from disk to disk: what is written, what a fit gains, what goes on where it was broken off."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from edits import edit_config, edit_tensors
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.cli import app
from gqa.convert.conversion import convert_to_latent
from gqa.convert.errors import UserError
from gqa.convert.family import all_families
from gqa.convert.latent.making import make_layer, stored_tensors
from gqa.convert.latent.plan import LatentOptions, plan_latent
from gqa.convert.latent.rewrite import convert_latent
from gqa.convert.latent.sources import HELD, _of_family
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import fingerprint, read_stages

SMALL = LatentOptions(kv_rank=20, rope_dim=12)
PLAIN = ConvertOptions(groups=1, method="lowrank")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def digest(path: Path) -> dict[str, str]:
    return {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(path.iterdir())}


@pytest.fixture
def small(make_checkpoint) -> Path:
    """With a tokenizer, so that it can be calibrated."""
    return make_checkpoint(num_attention_heads=4, num_key_value_heads=4, head_dim=8)


def test_the_command_writes_what_it_says_and_leaves_the_input_alone(small, tmp_path, state_of, load):
    before = digest(small)
    said = json.loads(run("--to", "mla", "--kv-budget", 0.5, small, "-o", tmp_path / "out", "--json"))
    assert digest(small) == before
    config, state = json.loads((tmp_path / "out" / "config.json").read_text()), state_of(tmp_path / "out")
    assert said["latent"]["kv_rank"] + said["latent"]["rope_dim"] == 32 == 4 * 2 * 8 / 2
    assert config["kv_lora_rank"] == said["latent"]["kv_rank"]
    assert config["qk_rope_head_dim"] == said["latent"]["rope_dim"]
    assert said["cache_bytes_per_token_after"] * 2 == said["cache_bytes_per_token_before"]
    assert said["weight_bytes"] == sum(tensor.nbytes for tensor in state.values())
    assert load(tmp_path / "out").config.model_type == "youtu"
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        assert torch.equal(state[name], state_of(small)[name])


def test_the_command_says_who_runs_the_result(small, calibration_text, tmp_path):
    sizes = ["--to", "mla", "--kv-budget", 0.5, small]
    assert "Only transformers runs it" in run(*sizes, "-o", tmp_path / "one")
    text = ["--calibration", calibration_text, "--calibration-tokens", 256, "--sequence-length", 16]
    said = run(*sizes, *text, "--model-type", "deepseek_v3", "-o", tmp_path / "other")
    assert f"gqa-export gguf {tmp_path / 'other'} other.gguf" in said
    assert "vLLM's kernels do not take these sizes, only --kv-rank 512 --rope-dim 64 or --kv-rank 256" in said


def test_the_command_says_nothing_against_sizes_that_kernels_take(make_checkpoint, calibration_text, tmp_path):
    wide = make_checkpoint(hidden_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=64)
    text = ["--calibration", calibration_text, "--calibration-tokens", 256, "--sequence-length", 16]
    sizes = ["--to", "mla", "--model-type", "deepseek_v3", "--kv-rank", 256, "--rope-dim", 64]
    said = run(*sizes, *text, wide, "-o", tmp_path / "out")
    assert "Engines run it too" in said
    assert "kernels" not in said


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"attention_bias": True}, "its projections have biases"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "settings of type linear"),
    ],
    ids=str,
)
def test_the_command_says_why_no_engine_runs_the_result(make_checkpoint, tmp_path, config, reason):
    said = run("--to", "mla", "--kv-rank", 20, make_checkpoint(**config), "-o", tmp_path / "out")
    assert "Only transformers runs it; no engine holds it as a deepseek_v3: " in said
    assert reason in said
    assert "--model-type" not in said


def test_gqa_json_says_what_was_done(small, tmp_path):
    plan = convert_latent(small, tmp_path / "out", SMALL, PLAIN)
    (stage,) = read_stages(tmp_path / "out")
    assert stage["method"] == "latent"
    assert (stage["model_type"], stage["rewritten_from"]) == ("youtu", "llama")
    assert stage["source"]["fingerprint"] == fingerprint(small)
    assert stage["latent"]["rotary_pairs"] == list(plan.factors.pairs)
    assert len(stage["layers"]) == 2
    for layer in stage["layers"]:
        assert 0 < layer["predicted_damage"]["keys"][0] < 1


def test_layers_are_made_from_what_stands_on_disk(small, tmp_path, state_of):
    plan = convert_latent(small, tmp_path / "out", SMALL, PLAIN)
    state = state_of(tmp_path / "out")
    for layer in range(2):
        for name, tensor in stored_tensors(plan, layer, make_layer(plan, layer)[0]).items():
            assert torch.equal(state[name], tensor)


def test_a_dry_run_writes_nothing_and_predicts(small, tmp_path):
    forecasts = []
    for rank in (4, 20):
        said = run("--to", "mla", "--kv-rank", rank, small, "--dry-run", "--json", "-o", tmp_path / "out")
        forecasts.append(json.loads(said)["forecast"])
    assert not (tmp_path / "out").exists()
    for less, more in zip(*forecasts, strict=True):
        assert more["values"] < less["values"]
    assert "Predicted damage" in run("--to", "mla", "--kv-rank", 4, small, "--dry-run", "--verbose")


def fitting(text: Path, steps: int = 12) -> ConvertOptions:
    calibration = CalibrationOptions(data=str(text), tokens=384, held_out_tokens=128, sequence_length=16, device="cpu")
    fit = FitOptions(steps=steps, step_tokens=96)
    return ConvertOptions(groups=1, method="lowrank", calibration=calibration, fit=fit)


def test_calibration_and_fit_help(small, calibration_text, tmp_path):
    convert_latent(small, tmp_path / "out", SMALL, fitting(calibration_text))
    (stage,) = read_stages(tmp_path / "out")
    for layer in stage["layers"]:
        assert layer["fit"]["held_out_after"] < layer["fit"]["held_out_before"]
    assert not list(tmp_path.glob("out.layers*"))


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("youtu", {}), ("deepseek_v3", {}), ("youtu", {"attention_bias": True}), ("youtu", {"model_type": "qwen2"})],
    ids=lambda value: str(value),
)
def test_layers_whose_queries_share_heads_are_fitted(
    make_checkpoint, calibration_text, tmp_path, load, model_type, config
):
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2} | ({} if "model_type" in config else {"head_dim": 8})
    source = make_checkpoint(**sizes, **config)
    latent = LatentOptions(kv_rank=12, rope_dim=8, model_type=model_type)
    convert_latent(source, tmp_path / "out", latent, fitting(calibration_text, steps=24))
    (stage,) = read_stages(tmp_path / "out")
    for layer in stage["layers"]:
        assert layer["fit"]["held_out_after"] < layer["fit"]["held_out_before"]
    assert load(tmp_path / "out").config.model_type == model_type


def test_what_the_fit_reports_is_what_the_class_puts_out(small, calibration_text, tmp_path, load):
    """The first layer, whose input is the original's: its attention's output from the two checkpoints on disk."""
    from gqa.convert.calibration import calibration_windows

    options = fitting(calibration_text)
    convert_latent(small, tmp_path / "out", SMALL, options)
    assert options.calibration is not None
    _, held_out = calibration_windows(small, options.calibration)
    outputs = []
    for path in (small, tmp_path / "out"):
        seen: list[torch.Tensor] = []
        model = load(path)
        model.model.layers[0].self_attn.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1][0]))
        with torch.no_grad():
            model(held_out)
        outputs.append(seen[0])
    wanted, found = outputs
    reported = read_stages(tmp_path / "out")[-1]["layers"][0]["fit"]["held_out_after"]
    off = (found - wanted).square().mean() / wanted.square().mean()
    assert reported == pytest.approx(off.item(), rel=0.02)


def test_a_fit_that_is_broken_off_goes_on(small, calibration_text, tmp_path, state_of):
    options = fitting(calibration_text)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("layer 2") and done > total // 2 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="1 of 2 layers"):
        convert_latent(small, tmp_path / "out", SMALL, options, progress=stop)
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    convert_latent(small, tmp_path / "out", SMALL, options, progress=lambda what, *_: told.append(what))
    assert {what for what in told if not what.startswith("choosing frequencies")} == {"layer 2 of 2"}
    convert_latent(small, tmp_path / "whole", SMALL, options)
    one, other = (state_of(tmp_path / name) for name in ("out", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "mla"], "give --kv-rank N or --kv-budget SHARE"),
        (["--to", "mlp", "--kv-rank", "8"], "unknown target --to 'mlp' (did you mean 'mla'?)"),
        (["--to", "mla", "--kv-rank", "8", "--kv-budget", "0.5"], "give one of them"),
        (["--to", "mla", "--kv-rank", "7"], "kv_rank is 7; it must be even"),
        (["--to", "mla", "--kv-rank", "8", "--rope-dim", "0"], "rope_dim is 0; it must be even"),
        (["--to", "mla", "--kv-rank", "68"], "kv_rank is 68, but 66 hold all that there is"),
        (["--to", "mla", "--kv-rank", "8", "--rope-dim", "34"], "all keys together have 32"),
        (["--to", "mla", "--kv-budget", "0.03"], "no room for a latent"),
        (["--to", "mla", "--kv-budget", "1.5"], "between 0 and 1"),
        (["--to", "mla", "--kv-rank", "8", "--groups", "2"], "--groups is for heads that merge"),
        (["--to", "mla", "--kv-rank", "8", "--method", "aligned"], "--method is for heads that merge"),
        (["--to", "mla", "--kv-rank", "8", "--keep-architecture"], "--keep-architecture is for heads that merge"),
        (["--to", "mla", "--kv-rank", "8", "--fit", "100"], "a fit needs text to learn from"),
        (["--kv-rank", "8", "--groups", "2"], "are for --to mla"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_sentence(small, tmp_path, arguments, says):
    result = CliRunner().invoke(app, [*arguments, str(small), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mistral", "sliding_window": 16}, "sees a window of 16 tokens"),
        ({"model_type": "qwen3"}, "a norm on its queries and keys"),
        ({"model_type": "phi"}, "phi can't be converted to latent attention: it has other norms"),
        (
            {"model_type": "gpt_neox", "num_key_value_heads": None},
            "gpt_neox can't be converted to latent attention: it has",
        ),
        ({"model_type": "ernie4_5", "use_bias": True}, "no place for model.layers.0.mlp."),
        ({"model_type": "mpt"}, "it has no rotary positions"),
        ({"num_key_value_heads": 1}, "llama can't be converted to latent attention: it has one KV head"),
        ({"model_type": "gemma", "num_key_value_heads": 1}, "it has other norms"),
        ({"mlp_bias": True}, "no place for model.layers.0.mlp."),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "change with the length"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_class_can_not_hold_is_refused_by_name(make_checkpoint, tmp_path, config, says):
    checkpoint = make_checkpoint(**config)
    result = CliRunner().invoke(app, ["--to", "mla", "--kv-rank", "8", str(checkpoint), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_encoder_decoder_is_refused_as_one(make_encoder_decoder, tmp_path):
    arguments = ["--to", "mla", "--kv-budget", "0.5", str(make_encoder_decoder()), "-o", str(tmp_path / "out")]
    assert "it is an encoder-decoder, of which no class has it" in CliRunner().invoke(app, arguments).stderr


def test_every_other_family_has_a_reason():
    for model_type, family in all_families().items():
        assert (_of_family(family) is None) == (model_type in HELD), model_type


def test_a_budget_is_never_exceeded():
    for cached in (64, 512, 8192):
        for share in (0.5, 0.25, 0.125, 0.07):
            for rank, rope in LatentOptions(kv_budget=share).divisions(cached, 32):
                assert rank % 2 == rope % 2 == 0
                assert share * cached - 2 < rank + rope <= share * cached


def test_a_budget_is_of_all_layers_where_they_differ_in_their_heads(make_checkpoint, tmp_path, load):
    source = make_checkpoint(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    edit_tensors(source, _with_one_head_in_the_second_layer)
    edit_config(source, model_type="deci", architectures=["DeciLMForCausalLM"], num_key_value_heads_per_layer=[4, 1])
    said = json.loads(run("--to", "mla", "--kv-budget", 0.5, source, "-o", tmp_path / "out", "--json"))
    assert said["kv_heads_before"] == 4
    sizes = said["latent"]["kv_rank"] + said["latent"]["rope_dim"]
    assert sizes == 2 * 8 * (4 + 1) // 2 / 2
    assert said["cache_bytes_per_token_after"] * 2 == said["cache_bytes_per_token_before"] == 4 * 2 * 8 * (4 + 1)
    assert load(tmp_path / "out").config.kv_lora_rank == said["latent"]["kv_rank"]


def _with_one_head_in_the_second_layer(state: dict[str, torch.Tensor]) -> None:
    for name in state:
        if name.startswith("model.layers.1.self_attn.") and name.split(".")[-2] in ("k_proj", "v_proj"):
            state[name] = state[name][:8].contiguous()


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_budget_is_divided_as_is_predicted_to_lose_least(small, share):
    """Of all divisions on offer; both layers are looked at, so the forecast says the same of each."""

    def lost(latent: LatentOptions) -> float:
        plan = plan_latent(small, latent, PLAIN)
        return sum(make_layer(plan, layer)[1].total for layer in range(2))

    cached = 2 * 4 * 8
    found = {
        rope: lost(LatentOptions(kv_rank=rank, rope_dim=rope))
        for rank, rope in LatentOptions(kv_budget=share).divisions(cached, 8)
    }
    chosen = plan_latent(small, LatentOptions(kv_budget=share), PLAIN).shape.rope_dim
    assert len(found) > 1
    assert found[chosen] == min(found.values())


@pytest.mark.parametrize("sizes", [{"kv_budget": 0.5}, {"kv_rank": 20}], ids=str)
def test_the_output_is_looked_at_before_weights_are_read(small, tmp_path, sizes):
    told: list[str] = []

    def note(what: str, *_: int) -> None:
        told.append(what)

    with pytest.raises(UserError, match="exists; choose another"):
        convert_to_latent(small, tmp_path, **sizes, progress=note)
    with pytest.raises(UserError, match="exists; choose another"):
        convert_latent(small, tmp_path, LatentOptions(**sizes), PLAIN, progress=note)
    assert not told


def test_room_on_the_disk_and_the_output_by_its_rank_are_looked_at_too(small, monkeypatch):
    told: list[str] = []
    small.with_name(f"{small.name}-mla20").mkdir()
    with pytest.raises(UserError, match="mla20 exists"):
        convert_to_latent(small, kv_rank=20, progress=lambda what, *_: told.append(what))
    usage = shutil.disk_usage(small)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="free some space"):
        convert_to_latent(small, small.with_name("out"), kv_budget=0.5, progress=lambda what, *_: told.append(what))
    assert not told


def test_whoever_waits_is_told_of_every_layer_that_is_looked_at(small):
    told: list[tuple[object, ...]] = []
    plan_latent(small, SMALL, PLAIN, lambda *what: told.append(what))
    assert told == [(f"choosing frequencies, layer {layer} of 2", layer, 2) for layer in (1, 2)]


def test_who_names_the_rotary_key_gets_it(small):
    assert plan_latent(small, LatentOptions(kv_budget=0.5, rope_dim=4), PLAIN).shape.rope_dim == 4
    assert plan_latent(small, LatentOptions(kv_rank=10), PLAIN).shape.rope_dim == 8
