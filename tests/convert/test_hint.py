"""The glance at the end of a conversion: its shares against exact ones, and when it holds its tongue."""

import subprocess
import sys

import pytest
import torch

from gqa.convert.attention import AttentionWeights
from gqa.convert.damage import damage
from gqa.convert.freedom import Freedom
from gqa.convert.hint import better_method, value_losses
from gqa.convert.method import Merge, method_for
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.positions import Rotation


def group_of_heads(heads, *, queries=1, width=64, head_dim=8, decay=0.0):
    """Random heads; with decay they share more and more of their values."""
    generator = torch.Generator().manual_seed(heads)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shared, scale = draw(head_dim, width), torch.arange(1, head_dim + 1)[:, None] ** -decay
    v = draw(heads, head_dim, head_dim) @ shared + 0.3 * scale * draw(heads, head_dim, width)
    return AttentionWeights(
        q=draw(heads * queries, head_dim, width),
        k=draw(heads, head_dim, width),
        v=v,
        o=draw(heads * queries, width, head_dim),
    )


@pytest.mark.parametrize(("heads", "queries"), [(2, 1), (4, 2), (8, 1)])
def test_shares_are_those_of_the_predicted_damage(heads, queries):
    group = group_of_heads(heads, queries=queries, decay=1.0)
    freedom, moments = Freedom(rotation=Rotation.none(8)), Moments.unit(64)
    asked = Merge(groups=1, layer=0, freedom=freedom, moments=moments)
    mean, low_rank = (method_for(name)(group, asked) for name in ("mean", "lowrank"))
    lost, least, total = value_losses(group, mean.v[0])
    (exact,) = damage(group, mean, freedom, moments).values
    assert lost / total == pytest.approx(exact, rel=1e-4)
    (exact,) = damage(group, low_rank, freedom, moments).values
    assert exact - 1e-6 <= least / total <= exact + 0.02


def test_heads_that_agree_can_keep_everything():
    group = group_of_heads(4)
    group = AttentionWeights(q=group.q, k=group.k, v=group.v[:1].expand(4, -1, -1), o=group.o)
    lost, least, total = value_losses(group, group.v[0])
    assert lost == 0
    assert least <= 1e-5 * total


def plan_for(checkpoint, **options):
    return plan_conversion(checkpoint, ConvertOptions(**options))


@pytest.mark.parametrize("method", ["mean", "first", "random"])
def test_low_rank_is_named_where_heads_differ_by_a_map(llama, tmp_path, method):
    model = llama.model().float()
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        heads = layer.self_attn.v_proj.weight.data.unflatten(0, (8, -1))
        heads[1::2] = torch.randn(4, 8, 8, generator=generator) @ heads[::2]
    model.save_pretrained(tmp_path)
    hint = better_method(plan_for(tmp_path, groups=4, method=method))
    assert hint is not None
    assert hint.kept < 0.8
    assert (hint.better, hint.better_kept) == ("lowrank", pytest.approx(1, abs=1e-4))
    assert better_method(plan_for(tmp_path, groups=4, method="lowrank")) is None


def test_nothing_is_said_where_nothing_is_lost(llama, tmp_path):
    model = llama.model().float()
    for layer in model.model.layers:
        heads = layer.self_attn.v_proj.weight.data.unflatten(0, (8, -1))
        heads.copy_(heads[::4].repeat_interleave(4, dim=0))
    model.save_pretrained(tmp_path)
    assert better_method(plan_for(tmp_path, groups=2)) is None
    hint = better_method(plan_for(tmp_path, groups=2, method="random"))
    assert hint is not None
    assert (hint.method, hint.kept, hint.better) == ("random", 0, "lowrank")
    assert hint.better_kept == pytest.approx(1, abs=1e-4)


def test_every_family_can_be_glanced_at(variant, tmp_path):
    variant.model().float().save_pretrained(tmp_path)
    hint = better_method(plan_for(tmp_path, groups=4, method="random"))
    if variant.name in ("olmo-clip", "afmoe", "bitnet"):  # values can't be mapped there
        assert hint is None
    else:
        assert hint is not None
        assert hint.kept < hint.better_kept < 1


def test_weights_that_no_conversion_looks_at_may_be_damaged(llama, tmp_path):
    model = llama.model().float()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    assert better_method(plan_for(tmp_path, groups=2)) is None


def test_the_default_conversion_does_without_transformers(checkpoint, tmp_path):
    """Which takes seconds to import."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from gqa.convert.cli import app\n"
        "result = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'Wrote' in result.stdout\n"
        "loaded = {'transformers', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    command = [sys.executable, "-c", code, "--groups", "2", "-o", str(tmp_path / "out"), str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
