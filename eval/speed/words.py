"""What the numbers of decoding speed say: above all when fewer KV heads can gain nothing, and why."""

from collections.abc import Sequence

from gqa.eval.speed.measure import Cell, Speed

_LITTLE = 1.1  # a gain below that is called none to be expected
_BUSY = 3.0  # steps that take so many times what memory allows are held up by something else


def speed_words(measured: Sequence[tuple[str, Speed]]) -> list[str]:
    """Sentences on checkpoints, given with their labels; the first is the one that the others are compared with."""
    (_, first), *others = measured
    sentences = [
        f"Memory is read at {first.bandwidth / 1e9:.1f} GB/s (sums of a long vector); the roofline is what reading all "
        "weights and the cache once takes at that, which no step can be faster than, unless caches hold them."
    ]
    for label, speed in others:
        for mine, theirs in zip(speed.cells, first.cells, strict=True):
            sentences += _of_cell(label, mine, theirs)
    busy = [cell for _, speed in measured for cell in speed.cells if cell.decode.median > _BUSY * cell.roofline]
    if busy:
        times = sorted(cell.decode.median / cell.roofline for cell in busy)
        number = sum(len(speed.cells) for _, speed in measured)
        number = sum(len(speed.cells) for _, speed in measured)
        sentences.append(
            f"{len(busy)} of {number} decoding times are {_range(times[0], times[-1])} times the roofline: Python, "
            "launching kernels or arithmetic takes that long, not memory, and a smaller cache shows little there. "
            "Larger batches, longer contexts, or compiled steps (--compile) show more."
        )
    return sentences


def possible_gain(mine: Cell, first: Cell) -> float:
    """How many times faster a step could be than the first checkpoint's, by the bytes that both move."""
    return (first.weight_bytes + first.cache_bytes) / (mine.weight_bytes + mine.cache_bytes)


def _of_cell(label: str, mine: Cell, first: Cell) -> list[str]:
    possible = possible_gain(mine, first)
    if possible >= _LITTLE:
        return []
    share = first.cache_bytes / (first.weight_bytes + first.cache_bytes)
    why = "the context is short" if mine.batch > 1 else "the batch is 1" if mine.context > 2048 else "both are small"
    return [
        f"{label}, batch {mine.batch}, context {mine.context}: no gain is to be expected ({why}); the cache is "
        f"{share:.0%} of what the first checkpoint reads for a step, so that a smaller one can make it at most "
        f"{possible:.2f} times faster."
    ]


def _range(low: float, high: float) -> str:
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
