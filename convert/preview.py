"""What a dry run has to say: the plan, what every method would lose, and what to do. Nothing is written."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from gqa.convert.budget import PerLayer, per_layer
from gqa.convert.calibration import CalibrationOptions, Progress, calibration_windows, layer_moments, stage
from gqa.convert.choosing import Choice, Wish
from gqa.convert.errors import UserError
from gqa.convert.forecast import Forecast, forecast
from gqa.convert.layerfit import FitOptions
from gqa.convert.method import traits_of
from gqa.convert.moments import Moments
from gqa.convert.own_text import first_token
from gqa.convert.plan import ConvertOptions, Plan
from gqa.convert.pretrained import load_weights, quiet_transformers
from gqa.convert.view import as_word

_OF_THE_SOURCE = ("checkpoint", "model_type", "rewritten_from", "num_heads", "kv_heads_before", "head_dim")
"""what a plan's JSON says of the checkpoint, whatever is made of it"""

_FLAGS = {
    "data": "--calibration",
    "tokens": "--calibration-tokens",
    "text_column": "--text-column",
    "subset": "--subset",
    "split": "--split",
    "sequence_length": "--sequence-length",
    "device": "--device",
    "dtype": "--compute-dtype",
    "seed": "--seed",
}
"""of the command line, by the calibration's options"""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A conversion and its rivals, before anything is spent."""

    choice: Choice
    calibration: CalibrationOptions | None
    """the text that the forecast was measured on; None: it is from the weights alone"""
    forecast: Forecast
    per_layer: PerLayer | None
    """for a budget: what a number of KV heads for every layer would gain"""

    @property
    def groups(self) -> int:
        """The KV heads asked for, or else recommended."""
        return self.choice.groups or self.forecast.recommended_groups()

    @property
    def merges(self) -> bool:
        """Whether heads do merge: the class alone may change, or layers be levelled."""
        return self.groups in self.choice.plan.group_choices

    @property
    def method(self) -> str:
        """The method recommended for them."""
        return self.forecast.best_method(self.groups) if self.merges else self.choice.plan.options.method

    def command(self, checkpoint: str) -> str:
        """The conversion recommended, with the options of the one asked for that bear on what comes out."""
        options = replace(self.choice.plan.options, groups=self.groups, method=self.method, calibration=None, fit=None)
        fit = self.choice.plan.options.fit
        if self.calibration and (fit or traits_of(self.method).uses_moments):
            return command_for(checkpoint, options, *_calibration_words(self.calibration, fit))
        return command_for(checkpoint, options)

    def to_json(self, checkpoint: str) -> dict[str, Any]:
        """Everything as JSON values."""
        plan = self.choice.plan.to_json()
        if self.choice.groups is None:
            plan = {key: plan[key] for key in _OF_THE_SOURCE}
        recommended = {"groups": self.groups, "method": self.method, "command": self.command(checkpoint)}
        gain = {} if self.per_layer is None else {"per_layer": asdict(self.per_layer)}
        return plan | self.choice.record | {"forecast": self.forecast.to_json(), "recommended": recommended} | gain


def command_for(checkpoint: str, options: ConvertOptions, *more: str) -> str:
    """The command line of a conversion.

    Args:
        checkpoint: as the user calls it.
        options: how to convert; what they say of calibration and fit is left out.
        more: words to stand at its end.
    """
    words = ["gqa-convert", as_word(checkpoint), "--groups", str(options.groups), "--method", options.method]
    if options.grouping != "auto":
        words += ["--grouping", options.grouping]
    if options.encoder:
        words.append("--encoder")
    if options.keep_architecture:
        words.append("--keep-architecture")
    if options.dtype:
        words += ["--dtype", options.dtype]
    return shlex.join([*words, *more])


def can_write(plan: Plan) -> bool:
    """Whether the model can write the text of `--calibration self`, as far as is known without running it."""
    from transformers import AutoModelForCausalLM

    if not plan.original_runs:
        return False
    quiet_transformers()
    try:
        first_token(plan.checkpoint)
        load_weights(AutoModelForCausalLM, plan.checkpoint, device="meta")
    except UserError:
        return False
    return True


def _calibration_words(calibration: CalibrationOptions, fit: FitOptions | None) -> Iterator[str]:
    """The flags of what was asked for."""
    flags = _FLAGS | ({"tokens": "--fit"} if fit else {})
    usual = CalibrationOptions(data="")
    for name, flag in flags.items():
        value = getattr(calibration, name)
        if value != getattr(usual, name) or flag == "--fit":
            yield from (flag, str(value))
    if fit and fit.steps != FitOptions().steps:
        yield from ("--fit-steps", str(fit.steps))


def preview(choice: Choice, wish: Wish, *, every_layer: bool, progress: Progress = lambda *_: None) -> Preview:
    """Look at a conversion and its rivals.

    Args:
        choice: the conversion.
        wish: what it came from; its calibration text, if there is any, is measured on.
        every_layer: whether no layer is left out.
        progress: told how much is done.

    Raises:
        UserError: the checkpoint or the calibration text can't be used.
    """
    plan = choice.plan
    layers = range(len(plan.places)) if every_layer else None
    moments = None if wish.calibration is None else _measured(choice, wish.calibration, progress)
    found = forecast(plan, layers=layers, moments=moments, progress=progress)
    gain = None
    if wish.kv_budget is not None:
        assert choice.groups is not None
        gain = per_layer(found, found.best_method(choice.groups), choice.groups)
    return Preview(choice=choice, calibration=wish.calibration, forecast=found, per_layer=gain)


def _measured(choice: Choice, calibration: CalibrationOptions, progress: Progress) -> Iterator[tuple[int, Moments]]:
    quiet_transformers()
    plan = choice.plan
    windows, _ = choice.text or calibration_windows(plan.checkpoint, calibration, progress)
    yield from layer_moments(stage(plan.checkpoint, calibration, own_code=plan.own_code), windows, progress=progress)
