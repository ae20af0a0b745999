"""Moments against the definition, streamed or at once, and against hooks on the stock model."""

import pytest
import torch

from gqa.convert.moments import Moments, MomentSums, watched
from gqa.convert.staged import StagedModel

CPU = torch.device("cpu")


def defined(x: torch.Tensor) -> torch.Tensor:
    """The definition, in float64. x: [tokens, hidden_size]."""
    rows = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    return rows.T @ rows / len(rows)


def summed(*batches: torch.Tensor) -> Moments:
    sums = MomentSums(batches[0].shape[-1], CPU)
    for batch in batches:
        sums.add(batch)
    return sums.finish()


def test_moments_are_those_of_rows_with_a_one_appended():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    moments = summed(x)
    torch.testing.assert_close(moments.xx, defined(x), rtol=1e-14, atol=0)
    assert moments.tokens == 50
    assert moments.xx[-1, -1] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_streamed_are_those_at_once(dtype):
    x = torch.randn(7, 33, 6, generator=torch.Generator().manual_seed(0)).to(dtype) + 0.5
    streamed, whole = summed(*x.split([1, 4, 2])), summed(x)
    assert streamed.xx.dtype == torch.float64
    assert streamed.tokens == whole.tokens == 7 * 33
    precision = 1e-13 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(streamed.xx, whole.xx, rtol=precision, atol=precision)
    torch.testing.assert_close(streamed.xx, defined(x.flatten(0, 1)), rtol=precision, atol=precision)


def test_many_batches_lose_nothing_to_the_size_of_the_sum():
    x = torch.full((1, 1), 0.1, dtype=torch.float32)
    sums = MomentSums(1, CPU)
    for _ in range(20_000):
        sums.add(x)
    assert sums.finish().xx[0, 0].item() == pytest.approx(float(x.double() ** 2), rel=1e-7)


def test_unit_moments_are_white_and_centred():
    maps = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments.unit(5)
    assert torch.equal(moments.apply(maps), maps @ torch.eye(6, dtype=torch.float64))
    assert moments.tokens == 0


def test_products_between_maps_are_means_over_the_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64) + 0.5
    left, right = torch.randn(2, 3, 4, 7, generator=generator, dtype=torch.float64)
    rows = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], dim=1)
    expected = torch.einsum("gmi,ti,gnj,tj->gmn", left, rows, right, rows) / 50
    torch.testing.assert_close(summed(x).between(left, right), expected)


@torch.no_grad()
def test_what_is_watched_is_what_the_stock_model_gives_q_k_and_v(variant, tmp_path, load):
    variant.model().save_pretrained(tmp_path)
    ids = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(7))
    model, stock = StagedModel(tmp_path, dtype=torch.float64, device=CPU), load(tmp_path)
    modules = [model.family.fused_qkv] if model.family.fused_qkv else [model.family.q, model.family.k, model.family.v]
    hidden = model.embed(ids)
    entered: dict[str, torch.Tensor] = {}
    for index in range(model.num_layers):
        for module in modules:
            name = f"model.layers.{index}.self_attn.{module}"
            stock.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name: entered.update({name: inputs[0]})
            )
    stock(input_ids=ids)
    for index in range(model.num_layers):
        sums = MomentSums(model.shape.hidden_size, CPU)
        with model.layer(index) as run, watched(run.projection, sums):
            hidden = torch.cat([run(rows) for rows in hidden.split(2)])
        for module in modules:
            expected = defined(entered[f"model.layers.{index}.self_attn.{module}"].flatten(0, 1))
            torch.testing.assert_close(sums.finish().xx, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_watching_ends_with_the_block():
    module, sums = torch.nn.Linear(3, 3), MomentSums(3, CPU)
    with watched(module, sums):
        module(torch.ones(2, 3))
    module(torch.ones(2, 3))
    assert sums.finish().tokens == 2


def test_shrunk_moments_keep_the_variance_and_lose_most_of_what_goes_together():
    rows = torch.randn(64, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    )
    sums = MomentSums(5, CPU)
    sums.add(rows + 2)
    measured = sums.finish()
    shrunk = measured.shrunk()
    assert shrunk.xx[-1, -1] == 1
    assert shrunk.tokens == 64
    torch.testing.assert_close(shrunk.xx.trace(), measured.xx.trace())
    apart = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(shrunk.xx[apart], 0.2 * measured.xx[apart])
    assert torch.linalg.eigvalsh(shrunk.xx).min() > 0
    unit = Moments.unit(5)
    assert unit.shrunk() is unit
