"""Measurements beside each other: small models leave most of a GPU idle, so several processes may share it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

from gqa.convert.pretrained import quiet_transformers

Case = TypeVar("Case")
Result = TypeVar("Result")


def measured(
    measure: Callable[[Any, Case], Result], setting: Any, cases: Iterable[Case], jobs: int
) -> Iterator[tuple[Case, Result]]:
    """Cases and what was measured of them, as they end.

    Args:
        measure: a function of a module, called with the setting and a case.
        setting: what all cases share.
        cases: what to measure, in this order.
        jobs: how many at once, in processes of their own; 1: one after the other in this one.
    """
    if jobs == 1:
        yield from ((case, measure(setting, case)) for case in cases)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=quiet_transformers) as pool:
        running = {pool.submit(measure, setting, case): case for case in cases}
        yield from ((running[ended], ended.result()) for ended in as_completed(running))
