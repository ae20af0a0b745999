"""How a forecast looks in a terminal: methods side by side, layers one by one, and what to do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gqa.convert.budget import PerLayer
from gqa.convert.choosing import Choice
from gqa.convert.forecast import LITTLE, Forecast
from gqa.convert.hint import Hint
from gqa.convert.method import traits_of
from gqa.convert.plan import ConvertOptions
from gqa.convert.preview import Preview, can_write, command_for
from gqa.convert.view import as_word, show_plan

_FIT_TOKENS = 65536


def show_preview(preview: Preview, checkpoint: str, console: Console, *, every_layer: bool) -> None:
    """All that a dry run says."""
    choice, forecast = preview.choice, preview.forecast
    if choice.groups is not None:
        show_plan(choice.plan, console)
    show_choice(choice, console)
    show_forecast(forecast, console)
    if every_layer:
        groups = forecast.groups if choice.groups is None else (choice.groups,)
        methods = dict.fromkeys(
            (preview.method,) if choice.groups is None else (choice.plan.options.method, preview.method)
        )
        for method in methods:
            show_layers(forecast, method, groups, console)
    if preview.per_layer is not None:
        sampled = len(forecast.layers) < forecast.num_layers
        show_per_layer(preview.per_layer, preview.groups, console, sampled=sampled)
    show_recommendation(preview, checkpoint, console)


def show_choice(choice: Choice, console: Console) -> None:
    """How the number of KV heads came about, where it was not simply given."""
    for sentence in choice.sentences:
        _say(console, sentence)


def show_forecast(forecast: Forecast, console: Console) -> None:
    """The methods side by side, the best of every column bold, and what the figures mean."""
    table = Table("method", "rewrites", "calibration", title="Predicted damage, by KV heads kept", title_justify="left")
    for groups in forecast.groups:
        table.add_column(str(groups), justify="right")
    for method in forecast.methods:
        traits = traits_of(method)
        rewritten = "q, k, v, o" if traits.rewrites_queries else "k, v"
        cells = (_best_bold(forecast, method, groups) for groups in forecast.groups)
        table.add_row(method, rewritten, "optional" if traits.uses_moments else "no use", *cells)
    console.print(table)
    for sentence in _explained(forecast):
        _say(console, sentence)


def _best_bold(forecast: Forecast, method: str, groups: int) -> Text:
    figure = f"{forecast.total(method, groups):.2f}"
    return Text(figure, style="bold" if method == forecast.best_method(groups) else "")


def _explained(forecast: Forecast) -> list[str]:
    source = "moments measured on the calibration text" if forecast.calibrated else "the weights alone"
    looked_at = f"all {forecast.num_layers} layers"
    if len(forecast.layers) < forecast.num_layers:
        numbers = ", ".join(forecast.names)
        looked_at = f"layers {numbers} of {forecast.num_layers}, a sample (--verbose looks at all)"
    return [
        "What scores lose by the keys, as a share, plus what the output loses by the values: 0 is no change, 1 as bad "
        "as leaving one of them out.",
        f"From {source}; the mean over {looked_at}.",
        *(f"Restricted: {reason}." for reason in forecast.restrictions),
    ]


def show_layers(forecast: Forecast, method: str, groups: Sequence[int], console: Console) -> None:
    """What a method loses in every layer: keys + values."""
    table = Table("layer", title=f"Predicted damage of {method}, keys + values, by KV heads kept", title_justify="left")
    for count in groups:
        table.add_column(str(count), justify="right")
    for position, name in enumerate(forecast.names):
        damages = [forecast.damages[method, count][position] for count in groups]
        table.add_row(name, *(f"{sum(damage.keys):.3f} + {sum(damage.values):.3f}" for damage in damages))
    console.print(table)


def show_per_layer(found: PerLayer, groups: int, console: Console, *, sampled: bool) -> None:
    """What a number of KV heads for every layer would gain over one for all; among some of the layers, if `sampled`."""
    if found.damage == found.uniform_damage:
        said = f"No other distribution of as many KV heads over layers is predicted to lose less than {groups} in each."
    else:
        less = 1 - found.damage / found.uniform_damage
        numbers = zip(found.names, found.counts, strict=True)
        counts = ", ".join(f"{count} in layer {name}" for name, count in numbers if count != groups)
        where = f" of the {len(found.names)} layers looked at" if sampled else ""
        said = (
            f"A number for every layer, no more in all, would lower the predicted damage{where} by {less:.0%} "
            f"({counts}; {groups} elsewhere); stock classes want one number for all."
        )
    _say(console, said)


def show_recommendation(preview: Preview, checkpoint: str, console: Console) -> None:
    """Which method, for the number of KV heads asked for or else for the fewest that lose little; and the command."""
    forecast, options = preview.forecast, preview.choice.plan.options
    damage = forecast.total(preview.method, preview.groups)
    said = f"Recommended: {preview.method} with {preview.groups} KV heads, predicted damage {damage:.2f}"
    if preview.choice.groups is None:
        fewest = f"the fewest that keep it within {LITTLE}"
        said += f", {fewest if damage <= LITTLE else f'though no number keeps it within {LITTLE}'}"
    elif options.method != preview.method:
        said += f" ({options.method}: {forecast.total(options.method, preview.groups):.2f})"
    _say(console, f"{said}.")
    _say(console, f"  {preview.command(checkpoint)}")
    if options.fit is None and preview.merges and not preview.choice.plan.family.sites:
        own = preview.calibration is None and can_write(preview.choice.plan)
        text = "text that the model writes" if own else "that text"
        data = "" if preview.calibration else f"--calibration {'self' if own else 'DATA'} "
        _say(console, f"{data}--fit {_FIT_TOKENS} fits every layer to {text}, which regains most of the loss.")


def show_hint(hint: Hint | None, checkpoint: str, options: ConvertOptions, output: Path, console: Console) -> None:
    """What another method would have kept, and the command; nothing, where none would have kept much more.

    Args:
        hint: what was found.
        checkpoint: as the user calls it.
        options: of the conversion that was made.
        output: where that is; the other goes beside it.
        console: where to say it.
    """
    if hint is None:
        return
    _say(
        console,
        f"Of what a token adds to the output, {hint.method} keeps {hint.kept:.0%}, {hint.better} would keep "
        f"{hint.better_kept:.0%} (a sample):",
    )
    beside = output.with_name(f"{output.name}-{hint.better}")
    _say(console, f"  {command_for(checkpoint, replace(options, method=hint.better), '-o', as_word(beside))}")


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, soft_wrap=True, highlight=False)
