"""Attention by documents, against transformers' own over the whole mask; on a CPU with a loop in the kernel's place."""

import copy
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from gqa.uptrain import attention, attention_documents
from gqa.uptrain.attention import packed_attention, packing_told
from gqa.uptrain.attention_documents import documents_of, sdpa_by_documents

LENGTH = 30
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 4, "head_dim": 8, "num_key_value_heads": 1},
}
POSITIONS = {
    "one document": [torch.arange(30), torch.arange(30)],
    "several": [torch.cat([torch.arange(count) for count in counts]) for counts in ((3, 20, 7), (17, 1, 12))],
}


class Kernel:
    """What torch's kernel computes, document by document."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        _: torch.Tensor,
        longest: int,
        __: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        self.calls += 1
        assert {part.dtype for part in (query, key, value)} == {torch.bfloat16}
        assert (starts.dtype, int(starts.diff().max())) == (torch.int32, longest)
        assert enable_gqa == (query.shape[1] != key.shape[1])
        index, (left, right) = torch.arange(len(query)), window_size
        behind = index[:, None] - index
        seen = (behind >= -right) & ((behind <= left) | (left < 0))
        outputs = [
            scaled_dot_product_attention(
                *(part[start:end].transpose(0, 1)[None] for part in (query, key, value)),
                attn_mask=seen[start:end, start:end],
                scale=scale,
                enable_gqa=enable_gqa,
            )[0].transpose(0, 1)
            for start, end in pairwise(starts.tolist())
        ]
        return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(attention_documents, "varlen_attn", kernel)
    monkeypatch.setattr(attention_documents, "_OPTIONS", {"enable_gqa": False, "window_size": (-1, -1)})
    monkeypatch.setattr(attention, "sdpa_in_blocks", sdpa_by_documents)  # also on a CPU
    return kernel


def states_and_gradients(
    model: Any, device: str = "cpu", positions: str = "several", *, autocast: bool = True
) -> list[torch.Tensor]:
    inputs = inputs_of(positions, device)
    with packing_told(inputs["position_ids"]), torch.autocast(device, torch.bfloat16, enabled=autocast):
        logits = model(**inputs, use_cache=False).logits
    return [logits, *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


def inputs_of(positions: str, device: str = "cpu") -> dict[str, Any]:
    ids = torch.randint(0, 256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    places = torch.stack(POSITIONS[positions])
    return {"input_ids": ids.to(device), "position_ids": places.to(device), "attention_mask": None}


def the_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()  # bf16, summed in another order


@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_is_the_same_attention(make_checkpoint: Callable[..., Path], model_type: str, kernel: Kernel):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(model_type, **FAMILIES[model_type]))
    expected = states_and_gradients(model)
    with packed_attention(torch.device("cpu")):
        found = states_and_gradients(model)
    assert kernel.calls == model.config.num_hidden_layers
    the_same(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_gpu_computes_the_same(
    make_checkpoint: Callable[..., Path],
    model_type: str,
    positions: str,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(model_type, **FAMILIES[model_type]))
    model.to("cuda")
    expected = states_and_gradients(model, "cuda", positions)
    exact = states_and_gradients(model, "cuda", positions, autocast=False)
    own: Any = attention_documents.varlen_attn
    calls: list[int] = []
    assert own is not None, "this torch has no attention for sequences of many lengths"
    monkeypatch.setattr(attention_documents, "varlen_attn", lambda *given, **how: calls.append(1) or own(*given, **how))
    if compiled:
        model.model.compile(dynamic=False)
    with packed_attention(torch.device("cuda")):
        found = states_and_gradients(model, "cuda", positions)
    masked = positions == "several" or model_type != "llama"
    assert (len(calls) > 0) == masked
    the_same(found, expected)
    the_same(found, exact)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of what it asks
def test_a_compiled_model_is_told_whether_it_needs_a_mask(make_checkpoint: Callable[..., Path], kernel: Kernel):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint())
    plain = copy.deepcopy(model)
    model.model.compile(dynamic=False)
    layers = model.config.num_hidden_layers
    for positions, calls in zip(["one document", "several"] * 2, (0, layers, layers, 2 * layers), strict=True):
        expected = states_and_gradients(plain, positions=positions)
        with packed_attention(torch.device("cpu")):
            found = states_and_gradients(model, positions=positions)
        the_same(found, expected)
        assert kernel.calls == calls


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_document_needs_no_mask_but_for_a_window(
    make_checkpoint: Callable[..., Path], model_type: str, kernel: Kernel
):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(model_type, **FAMILIES[model_type]))
    with packed_attention(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
        model(**inputs_of("one document"), use_cache=False)
    assert kernel.calls == (model.config.num_hidden_layers if model_type == "mistral" else kernel.calls)
    assert (kernel.calls == 0) == (model_type == "llama")


def test_fp32_is_left_alone(make_checkpoint: Callable[..., Path], kernel: Kernel):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint())
    expected = states_and_gradients(model, autocast=False)
    with packed_attention(torch.device("cpu")):
        found = states_and_gradients(model, autocast=False)
    assert kernel.calls == 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def mask_of(*lengths: int, window: int = LENGTH) -> torch.Tensor:
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    behind = torch.arange(len(number))[:, None] - torch.arange(len(number))
    return ((number[:, None] == number) & (behind >= 0) & (behind < window))[None, None]


def test_documents_are_read_off_the_mask():
    found = documents_of(torch.cat([mask_of(3, 20, 7), mask_of(30)]), 2, None)
    assert found is not None
    assert (found.starts.tolist(), found.longest) == ([0, 3, 23, 30, 60], 30)
    mask = mask_of(4, 6, window=3)
    found = documents_of(mask, 1, 3)
    assert found is not None
    assert found.starts.tolist() == [0, 4, 10]
    assert documents_of(mask, 1, None) is None  # the same mask without its window says something else


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (mask_of(10, window=4), None),
        (mask_of(10, window=4), 3),
        (torch.ones(1, 1, 10, 10, dtype=torch.bool), None),  # an encoder's
        (mask_of(10).logical_or(torch.arange(10) < 3), None),  # a prefix that all see
        (mask_of(10).logical_and(torch.arange(10) != 4), None),  # padding
        (mask_of(10).float(), None),  # added to the scores
        (mask_of(10)[..., :5], None),
        (mask_of(10)[0], None),
        (mask_of(10).expand(3, -1, -1, -1), None),
        (mask_of(10).expand(-1, 2, -1, -1), None),
    ],
)
def test_a_mask_that_says_more_is_left_alone(mask: torch.Tensor, window: int | None):
    assert documents_of(mask, 1, window) is None


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"dropout": 0.1}, (1, 4, 10, 8)),
        ({"position_bias": torch.zeros(1, 4, 10, 10)}, (1, 4, 10, 8)),
        ({}, (1, 4, 10, 12)),
        ({}, (1, 4, 10, 264)),
        ({}, (1, 4, 8, 8)),
    ],
)
def test_what_flash_attention_cannot_do_is_left_alone(change: dict[str, Any], shape: tuple[int, ...], kernel: Kernel):
    query, key = (torch.randn(size, dtype=torch.bfloat16) for size in (shape, (*shape[:2], 10, shape[3])))
    mask = mask_of(4, 6)[:, :, : shape[2]]
    outputs, _ = sdpa_by_documents(torch.nn.Identity(), query, key, key, mask, **change)
    assert (outputs.shape, kernel.calls) == ((1, shape[2], 4, shape[3]), 0)


def test_devices_without_it_are_left_alone(make_checkpoint: Callable[..., Path], kernel: Kernel):
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint())
    expected = states_and_gradients(model)
    with packed_attention(torch.device("meta")):
        found = states_and_gradients(model)
    assert kernel.calls == 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
