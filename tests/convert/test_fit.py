"""The layerwise fit: it helps where heads were lost, leaves alone what is exact, and knows every family's layer."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.errors import UserError
from gqa.convert.fit import FittedLayer, fit_layers
from gqa.convert.layerfit import FitOptions, fit_layer
from gqa.convert.layout import all_tensors, read_layer
from gqa.convert.method import Merge
from gqa.convert.methods.mean import merge
from gqa.convert.moments import Moments
from gqa.convert.muon import Muon
from gqa.convert.residual import Residual
from gqa.convert.staged import StagedModel
from gqa.convert.streams import Streams
from gqa.convert.tensors import read_entries

CPU = torch.device("cpu")
GROUPS = 2
QUICK = FitOptions(steps=12, step_tokens=96)


def ids(count: int, seed: int, length: int = 16) -> Tensor:
    return torch.randint(3, 96, (count, length), generator=torch.Generator().manual_seed(seed))


WINDOWS = ids(24, seed=1), ids(8, seed=2)


def staged(path: Path, groups: int | None = None, device: torch.device = CPU) -> StagedModel:
    return StagedModel(path, dtype=torch.float32, device=device, groups=groups)


def source(model: StagedModel, layer: int) -> AttentionWeights:
    """The layer as it is on disk, in float32."""
    prefix = model._prefixes[layer]
    found = {name: entry for name, entry in read_entries(model.checkpoint).items() if name.startswith(prefix)}
    tensors = {name.removeprefix(prefix): entry.load().float() for name, entry in found.items()}
    return read_layer(model.family, model.shape, tensors)


def mean(model: StagedModel, layer: int) -> AttentionWeights:
    return merge(source(model, layer), Merge(groups=GROUPS, layer=layer))


def fitted(path: Path, options: FitOptions = QUICK, device: torch.device = CPU, **more) -> list[FittedLayer]:
    model, converted = staged(path, device=device), staged(path, GROUPS, device)
    writers = {"in_class": partial(all_tensors, model.family.of_class), **more}
    written = partial(all_tensors, model.family)
    return list(fit_layers(model, converted, lambda layer, _: mean(model, layer), WINDOWS, options, written, **writers))


@pytest.fixture
def saved(variant, tmp_path: Path) -> Path:
    variant.model().float().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def llama_saved(llama, tmp_path: Path) -> Path:
    llama.model().float().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def parts(weights: AttentionWeights) -> dict[str, Tensor]:
    found = {name: part for name, part in vars(weights).items() if isinstance(part, Tensor)}
    return found | dict(weights.beside)


def same(one: AttentionWeights, other: AttentionWeights) -> bool:
    return all(torch.equal(part, parts(other)[name]) for name, part in parts(one).items())


def check_gain(path: Path) -> None:
    for layer in fitted(path):
        assert 0 <= layer.fit.held_out_after < layer.fit.held_out_before, layer.fit
        assert layer.fit.after < layer.fit.before
        assert all(part.isfinite().all() for part in parts(layer.weights).values())


def test_every_family_gains_from_the_fit_on_text_it_has_not_seen(saved):
    check_gain(saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_fits_the_same_with_the_hidden_states_on_it_or_not(llama_saved, monkeypatch):
    gpu = torch.device("cuda")
    on_it = fitted(llama_saved, device=gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    for near, far, on_cpu in zip(on_it, fitted(llama_saved, device=gpu), fitted(llama_saved), strict=True):
        assert near.fit.held_out_after < near.fit.held_out_before
        assert near.fit.held_out_after == pytest.approx(far.fit.held_out_after, rel=0.01)
        assert near.fit.held_out_after == pytest.approx(on_cpu.fit.held_out_after, rel=0.2)  # other noise, bfloat16
        assert all(part.device == CPU for part in parts(near.weights).values())


@pytest.mark.parametrize("name", ["exaone", "flint", "sarvam_moe"])
def test_so_do_families_whose_class_has_other_names_than_their_files(named, name, tmp_path):
    named(name).model().float().save_pretrained(tmp_path / "saved")
    check_gain(tmp_path / "saved")


@torch.no_grad()
def test_the_residual_is_the_layer_with_nothing_from_its_feed_forward_part(saved):
    model = staged(saved)
    hidden = model.embed(WINDOWS[1])
    with model.layer(0) as run:
        residual = Residual(run, partial(all_tensors, model.family.of_class))
        found = residual(hidden)
        assert torch.equal(residual(hidden, source(model, 0)), found)
        for parameter in run.module.get_submodule("mlp").parameters():
            parameter.zero_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            assert torch.equal(run(hidden), found)


def test_what_is_exact_stays_what_it_is(llama, tmp_path):
    model = llama.model().float()
    size = 8 // GROUPS
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                heads = projection.weight.unflatten(0, (8, -1))
                heads.copy_(heads[::size].repeat_interleave(size, dim=0))
    model.save_pretrained(tmp_path / "tied")
    original = staged(tmp_path / "tied")
    for layer in fitted(tmp_path / "tied"):
        assert layer.fit.steps == 0
        assert layer.fit.held_out_after == layer.fit.held_out_before < 1e-4
        assert layer.fit.after == layer.fit.before
        assert same(layer.weights, mean(original, layer.layer))


@pytest.mark.parametrize("fast", [True, False], ids=["products in bfloat16", "in float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "stablelm", "stablelm-norm", "starcoder2"])
def test_weights_stored_in_bfloat16_are_fitted_on_any_processor(named, tmp_path, monkeypatch, fast, dtype, name):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    named(name).model().to(torch.bfloat16).save_pretrained(tmp_path)
    model, converted = (StagedModel(tmp_path, dtype=dtype, device=CPU, groups=groups) for groups in (None, GROUPS))

    def start(layer: int, _: Moments) -> AttentionWeights:
        return mean(model, layer).map_kv(torch.Tensor.bfloat16).map_queries(torch.Tensor.bfloat16)

    written = partial(all_tensors, model.family)
    for layer in fit_layers(model, converted, start, WINDOWS, QUICK, written, dtype=torch.bfloat16):
        assert 0 < layer.fit.held_out_after < layer.fit.held_out_before


def test_large_biases_do_not_lengthen_the_steps_of_weights(named, tmp_path):
    """Of Qwen2's keys some are a thousand times as large as its weights."""
    model = named("qwen2").model().float()
    model.save_pretrained(tmp_path / "small")
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.mul_(1000)
    model.save_pretrained(tmp_path / "large")
    small, large = (mean(staged(tmp_path / size), 0) for size in ("small", "large"))
    moved = []
    for start in (small, large):
        parts = start.parts()
        back = start.with_parts(parts)
        torch.testing.assert_close(back.k_bias, start.k_bias)
        assert torch.equal(back.k, start.k)
        optimiser = Muon([parts["k"]])
        parts["k"].grad = torch.randn(parts["k"].shape, generator=torch.Generator().manual_seed(0))
        optimiser.step(0.03)
        moved.append(start.with_parts(parts))
    assert (moved[1].k - large.k).norm() < 1.5 * (moved[0].k - small.k).norm()
    assert moved[1].k_bias is not None
    assert large.k_bias is not None
    share = (moved[1].k_bias - large.k_bias).norm() / large.k_bias.norm()
    assert 0.01 < share < 0.1


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(llama_saved):
    first, second = fitted(llama_saved), fitted(llama_saved)
    other = fitted(llama_saved, replace(QUICK, seed=1))
    for one, two, three in zip(first, second, other, strict=True):
        assert same(one.weights, two.weights)
        assert not same(one.weights, three.weights)


def test_a_fit_goes_on_from_finished_layers(llama_saved):
    whole = fitted(llama_saved)
    kept = all_tensors(staged(llama_saved).family, whole[0].weights)
    (rest,) = fitted(llama_saved, finished={0: lambda: kept})
    assert rest.layer == 1
    assert same(rest.weights, whole[1].weights)


def test_reported_errors_are_those_of_the_converted_model(llama_saved):
    """Measured from the weights alone, without any of the fit's own machinery."""
    layer = fitted(llama_saved)[0]
    original, converted = staged(llama_saved), staged(llama_saved, GROUPS)
    hidden = original.embed(WINDOWS[1])

    @torch.no_grad()
    def attention(model: StagedModel, replace: dict[str, Tensor] | None = None) -> Tensor:
        seen: list[Tensor] = []
        with model.layer(0, replace=replace) as run:
            run.attention.register_forward_hook(lambda *call: seen.append(call[-1][0]))
            run(hidden)
        return seen[0]

    wanted = attention(original)
    for weights, reported in (
        (mean(original, 0), layer.fit.held_out_before),
        (layer.weights, layer.fit.held_out_after),
    ):
        off = attention(converted, all_tensors(converted.family, weights)) - wanted
        assert reported == pytest.approx((off.square().mean() / wanted.square().mean()).item(), rel=0.05)


def test_the_last_layer_makes_up_for_the_drift_below(llama_saved):
    """Fed by a converted first layer, the second comes nearer to the original's stream than its exact weights do."""
    model = staged(llama_saved)
    seen, unseen = map(model.embed, WINDOWS)
    drift = torch.randn(48, generator=torch.Generator().manual_seed(3)) * 0.3
    streams = [Streams(original=hidden, converted=hidden + drift) for hidden in (seen, unseen)]
    with model.layer(0) as run, staged(llama_saved, 8).layer(0) as other:
        _, fit = fit_layer(
            Residual(run, partial(all_tensors, model.family.of_class)),
            Residual(other, partial(all_tensors, model.family.of_class)),
            source(model, 0),
            train=streams[0],
            held_out=streams[1],
            options=QUICK,
        )
    assert fit.held_out_after < fit.held_out_before


def test_progress_counts_every_step(llama_saved):
    told: list[tuple[int, int]] = []
    fitted(llama_saved, progress=lambda layer, step: told.append((layer, step)))
    assert told == [(layer, step) for layer in range(2) for step in range(1, 13)]


@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 0), ("step_tokens", 0), ("learning_rate", 0.0), ("noise", -0.5)]
)
def test_senseless_settings_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=f"fit: {setting} is"):
        FitOptions(**{setting: value})
