"""The attention module on its own, against a plain loop over heads."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from transformers import Cache, DynamicCache, EncoderDecoderCache, GPT2Config, StaticCache

from gqa.convert.modeling.attention import GroupedQueryAttention

HIDDEN, HEADS, HEAD_DIM, BATCH, TOKENS = 24, 6, 5, 2, 7
GROUPS = [6, 3, 2, 1]


def attention(groups: int = 2, **settings) -> GroupedQueryAttention:
    """A module in float64, everything random."""
    sizes = {"hidden_size": HIDDEN, "num_heads": HEADS, "num_kv_heads": groups, "head_dim": HEAD_DIM, "layer_idx": 0}
    everything: dict[str, Any] = sizes | settings
    made = GroupedQueryAttention(**everything).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return made


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(module: GroupedQueryAttention, hidden: Tensor, others: Tensor | None = None, added: Any = 0.0) -> Tensor:
    """The same one head at a time; `added` is broadcast to [batch, heads, queries, keys]."""

    def rows(projection, head: int, source: Tensor) -> Tensor:
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        bias = 0 if projection.bias is None else projection.bias[part]
        made = source @ projection.weight[part].T + bias
        return made if module.clip_qkv is None else made.clamp(-module.clip_qkv, module.clip_qkv)

    source = hidden if others is None else others
    added = torch.as_tensor(added).expand(len(hidden), HEADS, hidden.shape[1], source.shape[1])
    output = torch.zeros_like(hidden) if module.o_proj.bias is None else module.o_proj.bias.expand_as(hidden).clone()
    for head in range(HEADS):
        shared = head // (HEADS // module.num_kv_heads)
        q, k, v = (
            rows(module.q_proj, head, hidden),
            rows(module.k_proj, shared, source),
            rows(module.v_proj, shared, source),
        )
        weights = torch.softmax(q @ k.mT * module.scale + added[:, head], dim=-1)
        output += weights @ v @ module.o_proj.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM].T
    return output


def future(queries: int, keys: int) -> Tensor:
    """Minus infinity where the last query, at the last key, and those before it must not look."""
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return torch.zeros(queries, keys, dtype=torch.float64).masked_fill(~seen, -math.inf)


def held(cache: Cache) -> tuple[Tensor, Tensor]:
    """The keys and values of the only layer."""
    layer: Any = cache.layers[0]
    return layer.keys, layer.values


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_a_loop_over_heads(groups, backend, causal):
    module, hidden = attention(groups, backend=backend, biases="qkvo"), numbers(BATCH, TOKENS, HIDDEN)
    output, weights = module(hidden, is_causal=causal)
    close(output, by_loop(module, hidden, added=future(TOKENS, TOKENS) if causal else 0.0))
    assert (weights is None) == (backend != "eager")
    if weights is not None:
        assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
        close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS, dtype=torch.float64))


@pytest.mark.parametrize("biases", ["", "o", "qvo", "qkv"])
def test_biases_are_where_they_are_asked_for(biases):
    module, hidden = attention(biases=biases), numbers(BATCH, TOKENS, HIDDEN)
    with_bias = [letter for letter in "qkvo" if getattr(module, f"{letter}_proj").bias is not None]
    assert with_bias == sorted(biases, key="qkvo".index)
    close(module(hidden)[0], by_loop(module, hidden))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("scale", "clip"), [(1.0, None), (0.3, 0.5), (None, 0.2)])
def test_scores_are_scaled_and_projections_clamped_as_told(backend, scale, clip):
    module = attention(backend=backend, scale=scale, clip_qkv=clip)
    hidden = numbers(BATCH, TOKENS, HIDDEN)
    assert module.scale == (HEAD_DIM**-0.5 if scale is None else scale)
    close(module(hidden)[0], by_loop(module, hidden))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("kind", ["bool", "added", None])
@pytest.mark.parametrize("biased", [True, False])
def test_masks_and_position_biases_add_up(backend, groups, kind, biased):
    """A mask for every sequence, as of padding, and a bias for every head, as ALiBi's."""
    module, hidden = attention(groups, backend=backend), numbers(BATCH, TOKENS, HIDDEN)
    padding = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    padding[1, :, :, 1] = False
    padding[1, :, 1, 0] = True
    slopes = 2.0 ** -torch.arange(1, HEADS + 1, dtype=torch.float64)
    bias = (slopes[:, None, None] * torch.arange(TOKENS)).expand(1, HEADS, TOKENS, TOKENS) if biased else None
    blocked = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(~padding, torch.finfo(torch.float64).min)
    mask = {"bool": padding, "added": blocked, None: None}[kind]
    output, _ = module(hidden, attention_mask=mask, position_bias=bias, is_causal=True)
    lost = future(TOKENS, TOKENS) if kind is None else blocked
    close(output, by_loop(module, hidden, added=lost + (0.0 if bias is None else bias)))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_rows_that_see_nothing_are_finite(backend, kind, dtype):
    module, hidden = attention(backend=backend).to(dtype), numbers(1, TOKENS, HIDDEN).to(dtype)
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    mask[:, :, :, :2] = False
    if kind == "added":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    bias = -torch.arange(TOKENS).to(dtype).mul(100).expand(1, HEADS, TOKENS, TOKENS)
    for position_bias in (None, bias):
        assert module(hidden, attention_mask=mask, position_bias=position_bias)[0].isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("steps", [[7], [3, 1, 1, 2], [1] * 7, [4, 3]])
def test_a_cache_holds_the_groups_and_gives_the_same(backend, steps, biased):
    module, hidden = attention(backend=backend, biases="kv"), numbers(BATCH, TOKENS, HIDDEN)
    bias = numbers(1, HEADS, TOKENS, TOKENS, seed=3) if biased else None
    cache, outputs, start = DynamicCache(), [], 0
    for count in steps:
        end = start + count
        part = None if bias is None else bias[:, :, start:end, :end]
        outputs.append(module(hidden[:, start:end], cache=cache, position_bias=part, is_causal=True)[0])
        start = end
    expected = by_loop(module, hidden, added=future(TOKENS, TOKENS) + (0.0 if bias is None else bias))
    close(torch.cat(outputs, dim=1), expected)
    assert [part.shape for part in held(cache)] == [(BATCH, 2, TOKENS, HEAD_DIM)] * 2


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_static_cache_is_read_as_far_as_it_is_filled(backend):
    module, hidden = attention(backend=backend), numbers(BATCH, TOKENS, HIDDEN)
    cache = StaticCache(GPT2Config(n_layer=1), max_cache_len=TOKENS + 4)
    parts = [module(part, cache=cache, is_causal=True)[0] for part in hidden.split([3, 1, 3], dim=1)]
    close(torch.cat(parts, dim=1), by_loop(module, hidden, added=future(TOKENS, TOKENS)))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("groups", [6, 2])
def test_cross_attention_reads_its_cache_once_it_is_filled(backend, groups):
    module = attention(groups, backend=backend, kv_size=10, biases="qvo")
    hidden, encoded = numbers(BATCH, TOKENS, HIDDEN), numbers(BATCH, 9, 10, seed=2)
    expected = by_loop(module, hidden, encoded)
    close(module(hidden, key_value_states=encoded)[0], expected)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    close(module(hidden[:, :4], key_value_states=encoded, cache=cache)[0], expected[:, :4])
    later = module(hidden[:, 4:], key_value_states=torch.full_like(encoded, math.nan), cache=cache)[0]
    close(later, expected[:, 4:])
    assert cache.is_updated == {0: True}
    assert held(cache.cross_attention_cache)[0].shape == (BATCH, groups, 9, HEAD_DIM)
    assert cache.self_attention_cache.get_seq_length() == 0


def test_self_attention_fills_its_own_part_of_a_double_cache():
    module, hidden = attention(), numbers(BATCH, TOKENS, HIDDEN)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    parts = [module(part, cache=cache, is_causal=True)[0] for part in hidden.split([4, 3], dim=1)]
    close(torch.cat(parts, dim=1), by_loop(module, hidden, added=future(TOKENS, TOKENS)))
    assert held(cache.self_attention_cache)[0].shape == (BATCH, 2, TOKENS, HEAD_DIM)
    assert cache.cross_attention_cache.get_seq_length() == 0


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
def test_gradients_are_those_of_the_loop(groups, backend):
    module = attention(groups, backend=backend, biases="qkvo", clip_qkv=1.5)
    hidden = numbers(BATCH, TOKENS, HIDDEN).requires_grad_()
    wanted = [hidden, *module.parameters()]
    seed = numbers(BATCH, TOKENS, HIDDEN, seed=5)
    found = torch.autograd.grad((module(hidden, is_causal=True)[0] * seed).sum(), wanted)
    looped = by_loop(module, hidden, added=future(TOKENS, TOKENS))
    for left, right in zip(found, torch.autograd.grad((looped * seed).sum(), wanted), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_gradients_reach_the_position_bias(backend):
    module, hidden = attention(backend=backend), numbers(1, 3, HIDDEN)
    bias = numbers(1, HEADS, 3, 3, seed=4).requires_grad_()
    assert gradcheck(lambda added: module(hidden, position_bias=added)[0], [bias])


def test_dropout_is_for_training_only():
    module, hidden = attention(backend="eager", dropout=0.5), numbers(BATCH, TOKENS, HIDDEN)
    close(module(hidden)[0], by_loop(module, hidden))
    torch.manual_seed(0)
    _, weights = module.train()(hidden)
    dropped = (weights == 0).double().mean()
    assert 0.3 < dropped < 0.7
    torch.manual_seed(0)
    module.backend = "sdpa"
    assert (module(hidden)[0] - by_loop(module, hidden)).abs().max() > 1e-3


@pytest.mark.parametrize("added", ["attention_mask", "position_bias"])
def test_the_flash_kernel_can_add_nothing_to_scores(added):
    module, hidden = attention(backend="flash"), numbers(BATCH, TOKENS, HIDDEN)
    given = {added: torch.zeros(1, HEADS, TOKENS, TOKENS, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"flash attention can add nothing to the scores.* use the sdpa backend"):
        module(hidden, **given)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_kv_heads": 4}, "6 query heads do not divide among 4 KV heads"),
        ({"backend": "fast"}, "unknown backend 'fast'; there are eager, sdpa, flash"),
    ],
)
def test_what_can_not_be(settings, says):
    with pytest.raises(ValueError, match=says):
        attention(**settings)
