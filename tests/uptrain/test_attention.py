"""Which of torch's kernels training asks first."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from transformers import AutoModelForCausalLM, masking_utils

from gqa.uptrain import attention, attention_documents
from gqa.uptrain.attention import packed_attention, packing_told
from gqa.uptrain.attention_documents import sdpa_by_documents

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def asked_first() -> SDPBackend:
    return SDPBackend(torch._C._get_sdp_priority_order()[0])


@pytest.mark.parametrize(
    ("capability", "first"),
    [((9, 0), SDPBackend.CUDNN_ATTENTION), ((8, 0), None), ((8, 9), None), ((10, 0), None), ((12, 0), None)],
)
def test_cudnn_is_asked_first_on_hopper_and_nowhere_else(
    capability: tuple[int, int], first: SDPBackend | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    before = asked_first()
    with packed_attention(torch.device("cuda")):
        assert asked_first() == (first or before)
    assert asked_first() == before


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="no Hopper GPU")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*Profiler clears events.*:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_cudnn_computes_what_needs_no_mask(make_checkpoint: Callable[..., Path], compiled: bool):
    sizes: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(**sizes))
    model.to("cuda")
    if compiled:
        model.model.compile(dynamic=False)
    ids = torch.randint(3, 60, (2, 128), device="cuda")
    positions = torch.arange(128, device="cuda").expand(2, -1)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with (
        packed_attention(torch.device("cuda")),
        packing_told(positions),
        torch.autocast("cuda", torch.bfloat16),
        torch.profiler.profile(activities=activities) as seen,
    ):
        model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss.backward()
    kernels = [event.key for event in seen.key_averages() if "cudnn" in event.key]
    assert len(kernels) >= 2, "forward and backward"


@pytest.mark.parametrize("window", [None, 5, 8, 9])
def test_a_compiled_model_needs_a_mask_where_another_does(window: int | None):
    theirs: Any = getattr(masking_utils, attention._SKIPS)
    offsets = [0] * (len(inspect.signature(theirs).parameters) - 4)
    assert attention._causal(None, 8, 8, *offsets, window) == theirs(None, 8, 8, *offsets, window)
    assert not attention._causal(None, 4, 8, *offsets, window)
    assert not attention._causal(torch.ones(1, 8, dtype=torch.bool), 8, 8, *offsets, window)


def test_cudnn_is_not_asked_behind_a_mask(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(
        attention_documents,
        "sdpa_attention_forward",
        lambda *_, **__: asked.append(torch.backends.cuda.cudnn_sdp_enabled()),
    )
    query = torch.randn(1, 2, 8, 8, dtype=torch.bfloat16)
    sdpa_by_documents(torch.nn.Identity(), query, query, query, torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert asked == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("length", [192, 704])
def test_gradients_behind_a_mask_are_finite_where_scores_are_far_below_zero(length: int):
    scores, head_dim = -120.0, 64
    query, key, value = (torch.randn(1, 1, length, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query, key = 0.1 * query, 0.1 * key
    query[..., 0], key[..., 0] = 1.0, scores * head_dim**0.5
    parts = [part.requires_grad_() for part in (query, key, value)]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="cuda")
    mask[..., : length // 2, length // 2 :] = False  # a prefix whose tokens all see each other: no documents
    with packed_attention(torch.device("cuda")):
        outputs, _ = sdpa_by_documents(torch.nn.Identity(), parts[0], parts[1], parts[2], mask)
        gradients = torch.autograd.grad(outputs.float().square().sum(), parts)
    assert all(gradient.isfinite().all() for gradient in gradients)
