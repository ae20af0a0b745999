"""Several batches at once on a CPU: threads with a few cores each, in place of all cores for one batch after another.

The products of small models are over before they are shared out, and what lies between them isn't shared at all. A
thread that has a core to itself never waits for another one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Own = TypeVar("Own")
Item = TypeVar("Item")
Made = TypeVar("Made")

_ROUNDS = 4  # batches that every worker has at least, so that few idle while the last ones end
_LONGEST = 10**12  # operations of a batch, some 20 seconds of a core: so long may Ctrl-C have to wait
_LOGITS = 1 << 21  # of a token, all workers together: what bounds their memory


@dataclass(frozen=True)
class Workers:
    """How many threads there are, and how many cores each has."""

    count: int = 1
    cores: int | None = None
    """None: what torch has"""

    def map(
        self, function: Callable[[Own, Item], Made], items: Iterable[Item], own: Callable[[], Own]
    ) -> Iterator[Made]:
        """`function(own(), item)` of every item, in the order of the items.

        Args:
            function: what a worker does; several run at once.
            items: taken when they are needed, a few ahead of what is given out.
            own: makes what a worker has to itself; called once by each.
        """
        if self.count == 1:
            mine = own()
            yield from (function(mine, item) for item in items)
            return
        before, here = torch.get_num_threads(), threading.local()

        def run(item: Item) -> Made:
            if not hasattr(here, "own"):
                torch.set_num_threads(self.cores or before)  # of this thread alone
                here.own = own()
            return function(here.own, item)

        pool = ThreadPoolExecutor(self.count)
        try:
            yield from _in_order(pool, run, items, ahead=self.count)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # which threads to come take over


def choose_workers(model: "PreTrainedModel", *, batches: int, tokens: int) -> Workers:
    """As many as there are cores, where the model runs on them, and batches, of `tokens` each, are short and many."""
    cores = torch.get_num_threads()
    count = min(cores, batches // _ROUNDS, _LOGITS // model.get_output_embeddings().weight.shape[0])
    if model.device.type != "cpu" or count < 2 or 2 * model.num_parameters() * tokens > _LONGEST:
        return Workers()
    return Workers(count, cores // count)


def _in_order(
    pool: ThreadPoolExecutor, run: Callable[[Item], Made], items: Iterable[Item], *, ahead: int
) -> Iterator[Made]:
    """Results in the order of the items; never more than `ahead` of them wait to be taken."""
    waiting = deque[Future[Made]]()
    for item in items:
        waiting.append(pool.submit(run, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
