"""The fewest KV heads whose loss is bearable, found by measuring: convert in memory and on scratch, run, compare.

Loss grows as heads become fewer, so halving the interval finds the number with few measurements, and ends with two
neighbours measured: one that is bearable and the next smaller, which is not. What was made for the chosen one is what
gets written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gqa.convert.ahead import LayerStore, Text, layers_ahead, making_of
from gqa.convert.calibration import CalibrationOptions, Progress, calibration_windows, stage
from gqa.convert.errors import UserError
from gqa.convert.loss import mean_nll
from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import Plan
from gqa.convert.pretrained import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the search ended with."""

    plan: Plan
    """the conversion with the fewest KV heads whose loss is bearable"""
    layers: LayerStore | None
    """its layers, while the search's `with` lasts; None where they are made when they are written"""
    original_nll: float
    """in nats, of the original model, on the held-out text"""
    losses: Mapping[int, float]
    """by KV heads, every one measured: nats a token more than the original's"""
    max_loss: float
    text: Text
    """that was calibrated on, and the held-out text that was measured on"""

    def record(self) -> dict[str, object]:
        """What `gqa.json` says of the search."""
        return {
            "max_loss": self.max_loss,
            "held_out_tokens": self.text[1].numel(),
            "original_nll": self.original_nll,
            "losses": [{"groups": groups, "loss": loss} for groups, loss in sorted(self.losses.items())],
        }


@contextmanager
def fewest_groups(
    plan_for: Callable[[int], Plan],
    calibration: CalibrationOptions,
    max_loss: float,
    place_for: Callable[[int], Path],
    progress: Progress = lambda *_: None,
) -> Iterator[Chosen]:
    """Find the fewest KV heads that lose at most `max_loss` nats on the calibration's held-out text.

    Args:
        plan_for: the conversion to so many KV heads, with this calibration or with none.
        calibration: the text, and how to run the model on it.
        max_loss: nats a token.
        place_for: a name of its own for that conversion; finished layers wait beside it.
        progress: told what is being done, how much of it is done, of how much.

    Raises:
        UserError: even the most KV heads lose more, or the text or the checkpoint can't be used.
    """
    quiet_transformers()
    candidates = plan_for(1).group_choices
    first = plan_for(candidates[-1])
    text = calibration_windows(first.checkpoint, calibration, progress)
    _, held_out = text
    original = mean_nll(stage(first.checkpoint, calibration, own_code=first.own_code), held_out, progress=progress)
    losses: dict[int, float] = {}
    stores: dict[int, LayerStore | None] = {}
    with ExitStack() as kept:  # to the end, so that a fit that is broken off can go on from all that is done

        def is_bearable(groups: int) -> bool:
            plan, place, said = plan_for(groups), place_for(groups), _naming(groups, progress)
            stores[groups] = None
            if plan.options.calibration:
                assert plan.options.calibration == calibration
                stores[groups] = kept.enter_context(layers_ahead(making_of(plan), place, said, text))
            losses[groups] = _converted_nll(plan, stores[groups], calibration, held_out, said) - original
            return losses[groups] <= max_loss

        groups = fewest(candidates, is_bearable)
        if groups is not None:
            yield Chosen(
                plan=plan_for(groups),
                layers=stores[groups],
                original_nll=original,
                losses=losses,
                max_loss=max_loss,
                text=text,
            )
    if groups is None:
        raise UserError(_too_much(losses, max_loss, first))


def fewest(candidates: Sequence[int], is_bearable: Callable[[int], bool]) -> int | None:
    """The first bearable one of `candidates`, given that those after a bearable one are bearable too; None: none is.

    Both it and the one before it have been asked about.
    """
    fails, bearable = -1, len(candidates)
    while bearable - fails > 1:
        middle = (fails + bearable) // 2
        fails, bearable = (fails, middle) if is_bearable(candidates[middle]) else (middle, bearable)
    return candidates[bearable] if bearable < len(candidates) else None


def _converted_nll(
    plan: Plan, store: LayerStore | None, calibration: CalibrationOptions, held_out: Tensor, progress: Progress
) -> float:
    staged = stage(plan.checkpoint, calibration, groups=plan.options.groups, own_code=plan.own_code)

    def layer_tensors(layer: int) -> dict[str, Tensor]:
        if store is None:
            tensors = disk_tensors(plan, layer, merge_layer(plan, layer).weights)
        else:
            tensors = {tensor.name: store.take(tensor.name) for tensor in plan.merged[layer]}
        return {name.removeprefix(plan.prefixes[layer]): tensor for name, tensor in tensors.items()}

    return mean_nll(staged, held_out, layer_tensors, progress=progress)


def _naming(groups: int, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{groups} KV heads: {what}", done, total)


def _too_much(losses: Mapping[int, float], max_loss: float, plan: Plan) -> str:
    groups = max(losses)
    better = "fit with more tokens" if plan.options.fit else "add --fit TOKENS"
    if plan.options.method != "lowrank":
        better = "choose --method lowrank"
    return (
        f"method {plan.options.method} loses {losses[groups]:.3f} nats even with {groups} KV heads, more than the "
        f"{max_loss:g} of max_loss; {better}, or allow more"
    )
