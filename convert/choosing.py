"""How many KV heads: a number, a share of the cache, or as few as lose no more than so much."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from gqa.convert.ahead import LayerStore, Text
from gqa.convert.auto import Chosen, fewest_groups
from gqa.convert.budget import groups_within
from gqa.convert.calibration import CalibrationOptions, Progress
from gqa.convert.checkpoint import open_for
from gqa.convert.directory import check_output, disk_errors
from gqa.convert.errors import UserError
from gqa.convert.method import traits_of
from gqa.convert.options import COMMAND_LINE, build_options
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.uneven import span


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for."""

    groups: str | None = None
    """a number, or `auto`: as few as lose at most `max_loss`, measured"""
    kv_budget: float | None = None
    """instead of groups: the share of the KV cache that may be kept"""
    max_loss: float | None = None
    """for `auto`: nats a token"""
    calibration: CalibrationOptions | None = None
    """for `auto`: the text whose held-out part is measured on"""
    optional: bool = False
    """whether there need be no wish at all, as when nothing is going to be written"""

    def __post_init__(self) -> None:
        if self.groups is not None and self.kv_budget is not None:
            raise UserError("--groups and --kv-budget both say how many KV heads to keep; give one of them")
        if self.groups is None and self.kv_budget is None and not self.optional:
            raise UserError(
                "how many KV heads to keep? give --groups N, --kv-budget SHARE, or --groups auto with --max-loss; "
                "--dry-run shows what each number would lose"
            )
        if self.groups not in (None, "auto") and not str(self.groups).removeprefix("-").isdecimal():
            raise UserError(f"groups is {self.groups!r}; give a number of KV heads, or auto")
        if self.groups != "auto":
            if self.max_loss is not None:
                raise UserError("--max-loss is for --groups auto, which finds the fewest KV heads that keep it")
        elif self.max_loss is None or self.calibration is None:
            raise UserError(
                "--groups auto finds the fewest KV heads that lose at most --max-loss NATS, measured on held-out text "
                "of --calibration DATA; give both"
            )
        elif not 0 < self.max_loss < math.inf:
            raise UserError(f"max_loss is {self.max_loss:g} nats; it must be more than 0")

    def options(self, given: Mapping[str, Any]) -> ConvertOptions:
        """The options of a conversion; the number of KV heads stands in them where one was asked for.

        Args:
            given: all but groups and calibration, not yet checked.

        Raises:
            UserError: a value is wrong, or the method has no use for the calibration and nothing else has either.
        """
        groups = 1 if self.groups in (None, "auto") else int(self.groups)
        measured_on = self.groups == "auto" or self.optional
        useful = given.get("fit") or traits_of(given["method"]).uses_moments or not measured_on
        calibration = self.calibration if useful else None
        return build_options(ConvertOptions, {**given, "groups": groups, "calibration": calibration}, COMMAND_LINE)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What comes of a wish."""

    plan: Plan
    groups: int | None
    """of the plan; None: nothing was asked for, and the plan's number is only an example"""
    sentences: tuple[str, ...] = ()
    """how the number came about, for whoever asked for something else than a number"""
    layers: LayerStore | None = None
    """finished layers, where measuring has made them"""
    text: Text | None = None
    """what was measured on, where anything was"""
    record: Mapping[str, object] = field(default_factory=dict)
    """what `gqa.json` says of it"""


@contextmanager
def chosen(
    checkpoint: Path,
    wish: Wish,
    options: ConvertOptions,
    output_for: Callable[[int], Path],
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Iterator[Choice]:
    """Settle on a number of KV heads and plan the conversion to it.

    Args:
        checkpoint: the original.
        wish: what was asked for.
        options: how to convert, whatever the number.
        output_for: where that would go.
        overwrite: whether an output that exists is in nobody's way.
        progress: told what is measured.

    Raises:
        UserError: the wish can't be met, or the conversion can't be done.
    """
    opened = open_for(checkpoint, groups=None, keep_architecture=options.keep_architecture)
    kv_heads, choices = opened.shape.num_kv_heads, opened.group_choices(encoder=options.encoder)
    heads = span(opened.levelled or [kv_heads])
    if not choices:
        opened.check_groups(kv_heads, encoder=options.encoder)  # which says that there is nothing to merge
    if wish.calibration is not None:
        opened.check_calibrated()

    def plan_for(groups: int) -> Plan:
        return plan_conversion(checkpoint, replace(options, groups=groups))

    if wish.groups == "auto":
        assert wish.calibration is not None
        assert wish.max_loss is not None

        def place_for(groups: int) -> Path:
            output = output_for(groups)  # which may be the same for all
            return output.with_name(f"{output.name}.{groups}")

        for groups in () if wish.optional else choices:  # before hours of fitting
            check_output(output_for(groups), [checkpoint], overwrite=overwrite)
        search = fewest_groups(plan_for, wish.calibration, wish.max_loss, place_for, progress)
        with disk_errors(output_for(choices[-1])), search as found:
            yield Choice(
                plan=found.plan,
                groups=found.plan.options.groups,
                sentences=tuple(_measured(found, heads)),
                layers=found.layers,
                text=found.text,
                record={"auto": found.record()},
            )
    elif wish.kv_budget is not None:
        groups = groups_within(fmean(opened.levelled or [kv_heads]), wish.kv_budget, choices)
        said = f"A KV cache of at most {wish.kv_budget:g} of the original's: {groups} of {heads} KV heads."
        yield Choice(plan=plan_for(groups), groups=groups, sentences=(said,), record={"kv_budget": wish.kv_budget})
    elif wish.groups is not None:
        yield Choice(plan=plan_for(int(wish.groups)), groups=int(wish.groups))
    else:
        yield Choice(plan=plan_for(choices[-1]), groups=None)


def _measured(found: Chosen, heads: str) -> Iterator[str]:
    tokens = found.text[1].numel()
    yield f"Measured on {tokens:,} held-out tokens: {found.original_nll:.4f} nats a token with {heads} KV heads."
    for groups, loss in sorted(found.losses.items(), reverse=True):
        verdict = "within" if loss <= found.max_loss else "more than"
        taken = ", taken" if groups == found.plan.options.groups else ""
        yield f"  {groups} KV heads: {loss:+.4f}, {verdict} {found.max_loss:g}{taken}"
