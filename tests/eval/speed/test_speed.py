"""Speed: what is counted is right, what is said follows from it; seconds are asserted only to be there."""

from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.eval.cache import cache_argument
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.speed import packed
from gqa.eval.speed.clock import Timing, timed
from gqa.eval.speed.largest import largest_batch, search_largest
from gqa.eval.speed.measure import Cell, Speed, count_as_filled, measure_speed, read_bytes, static_cache
from gqa.eval.speed.memory import bandwidth, peak_memory
from gqa.eval.speed.options import SpeedOptions
from gqa.eval.speed.words import possible_gain, speed_words

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_vector(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gqa.eval.speed.memory._READ_BYTES", 1 << 20)
    bandwidth.cache_clear()
    yield
    bandwidth.cache_clear()


def test_a_grid_in_a_report(checkpoint, make_checkpoint, data, tmp_path: Path):
    other = make_checkpoint("other", num_key_value_heads=1)
    speed = SpeedOptions(batch=(1, 2), context=(8, 16), repeats=2, steps=3, memory_gb=0.001)
    options = EvalOptions(data=str(data), window=16, device="cpu", speed=speed)
    made = evaluate([checkpoint, other], options).to_dict()
    assert made["speed"]["attention"] == "sdpa"
    assert made["speed"]["compiled"] is False
    assert made["speed"]["bandwidth_bytes_per_second"] > 0
    for row, heads in zip(made["checkpoints"], (4, 1), strict=True):
        assert [(cell["batch"], cell["context"]) for cell in row["speed"]] == [(1, 8), (2, 8), (1, 16), (2, 16)]
        for cell in row["speed"]:
            assert cell["cache_bytes"] == 2 * 2 * heads * 8 * 4 * (cell["context"] + 3) * cell["batch"]
            assert cell["decode"]["min"] <= cell["decode"]["median"] <= cell["decode"]["max"]
            assert cell["tokens_per_second"] == cell["batch"] / cell["decode"]["median"]
            moved = cell["weight_bytes"] + cell["cache_bytes"]
            assert cell["roofline"] == moved / made["speed"]["bandwidth_bytes_per_second"]
            each = cell["cache_bytes"] // cell["batch"]
            assert cell["largest_batch"] == (1_000_000 - row["parameters"] * 4) // each
            assert cell["largest_batch_tried"] is None


@pytest.mark.parametrize("attention", ["sdpa", packed.NAME])
def test_decoding_with_a_fixed_cache_is_decoding(make_checkpoint, attention):
    packed.register()
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(num_key_value_heads=2)).eval()
    model.set_attn_implementation(attention)
    ids = torch.arange(24).view(2, 12) + 5
    cache = static_cache(model, 16)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        model(input_ids=ids[:, :8], **{cache_argument(model): cache})
        steps = [model(input_ids=ids[:, at : at + 1], **{cache_argument(model): cache}).logits for at in range(8, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole[:, 8:], rtol=1e-4, atol=1e-4)


def test_a_cache_that_counts_as_filled_is_where_it_would_be(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    cache = static_cache(model, 16)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5]]), **{cache_argument(model): cache})
        count_as_filled(cache, 9)
        model(input_ids=torch.tensor([[6]]), **{cache_argument(model): cache})
    layers: list[Any] = cache.layers
    assert [int(layer.get_seq_length()) for layer in layers] == [10, 10]
    assert bool(layers[0].keys[0, 0, 9].any())


def test_a_table_that_is_no_output_layer_is_hardly_read(make_checkpoint):
    untied, tied = (
        AutoModelForCausalLM.from_pretrained(make_checkpoint(tie_word_embeddings=tie)) for tie in (False, True)
    )
    assert read_bytes(untied) == read_bytes(tied)
    assert read_bytes(tied) == 4 * sum(parameter.numel() for parameter in tied.parameters())


def test_times_are_of_one_part_and_the_warm_up_is_not_among_them():
    done = []
    timing = timed(lambda: done.append("run"), CPU, repeats=3, before=lambda: done.append("before"), parts=2)
    assert len(timing.seconds) == 3
    assert done == ["before", "run"] * 4
    assert Timing((3.0, 1.0, 2.0)).to_dict() == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.mark.parametrize("most", [0, 1, 2, 7, 100, 1000])
def test_the_largest_that_fits_is_found_to_an_eighth(most):
    found = search_largest(lambda batch: batch <= most)
    assert found <= most
    assert most - found <= max(1, found // 8)
    assert largest_batch(1000, 300, 70) == 10
    assert largest_batch(100, 300, 70) == 0


def test_peak_memory_is_of_the_block():
    with peak_memory(CPU) as before:
        pass
    with peak_memory(CPU) as peak:
        memory = mmap(-1, 1 << 26)  # new pages, where an allocator may have old ones left
        memory.write(bytes(1 << 26))
        memory.close()
    if peak.bytes is not None and before.bytes is not None:
        assert peak.bytes - before.bytes > 1 << 25


def cell(batch: int, context: int, *, cache: int, weights: int = 1000, seconds: float = 1.0, roofline: float = 1.0):
    return Cell(
        batch=batch,
        context=context,
        prefill=Timing((1.0,)),
        decode=Timing((seconds,)),
        peak_bytes=None,
        cache_bytes=cache,
        weight_bytes=weights,
        roofline=roofline,
        largest_batch=1,
        largest_batch_tried=None,
    )


def speed(*cells: Cell) -> Speed:
    return Speed(cells=cells, bandwidth=1e9, attention="sdpa", compiled=False, dtype="float32")


def test_words_say_when_there_is_nothing_to_gain():
    before = speed(cell(1, 512, cache=50), cell(8, 4096, cache=4000))
    after = speed(cell(1, 512, cache=10), cell(8, 4096, cache=1000))
    assert possible_gain(after.cells[1], before.cells[1]) == 2.5
    words = speed_words([("before", before), ("after", after)])
    assert len(words) == 2
    assert "after, batch 1, context 512: no gain is to be expected (both are small); the cache is 5%" in words[1]
    assert "at most 1.04 times faster" in words[1]


def test_words_say_when_something_else_than_memory_takes_the_time():
    slow = speed(cell(8, 4096, cache=4000, seconds=9.0), cell(16, 4096, cache=4000, seconds=2.0))
    words = speed_words([("one", slow)])
    assert "1 of 2 decoding times are 9.0 times the roofline" in words[1]


def test_a_model_without_grouped_heads_packs_nothing(make_checkpoint):
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint()).eval()
    found = measure_speed(model, SpeedOptions(context=(8,), repeats=1, steps=1, attention="eager"))
    assert found.attention == "eager"
