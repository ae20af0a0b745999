"""How a plan and its result look in a terminal."""

import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from gqa.convert.plan import ConvertOptions, LayerPlan, Plan
from gqa.convert.provenance import read_stages
from gqa.convert.uneven import span


def show_plan(plan: Plan, console: Console) -> None:
    """A table of what happens to every layer, equal neighbours in one row, and the totals."""
    table = Table(
        title=f"{plan.checkpoint.name}: {plan.family.model_type}, method {plan.options.method}", title_justify="left"
    )
    for column in ("layers", "query heads", "KV heads", "K/V weights", "KV cache per token", "parameters saved"):
        table.add_column(column, justify="left" if column == "layers" else "right")
    for _, run in groupby(plan.layers, key=_but_number):
        table.add_row(*_row(list(run)))
    if len(plan.layers) > 1:
        table.add_section()
        table.add_row("all", *_row(plan.layers)[1:])
    console.print(table)
    console.print(f"Output: {size(plan.total_bytes)} of weights. Cache sizes are for {_cache_dtype(plan)} values.")


def show_result(plan: Plan, output: Path, seconds: float, console: Console) -> None:
    """What was made, what it saves, and what to do next."""
    data = "SPEECH" if plan.family.hears else "TEXT"
    compared = [plan.checkpoint, output] if plan.original_runs else [output]
    if all(layer.kv_heads_after % layer.kv_heads_before == 0 for layer in plan.layers):
        console.print(
            f"Wrote {output} in {seconds:.1f} s: {plan.options.groups} KV heads, none of them merged. To compare:",
            soft_wrap=True,
        )
        _show_command(console, "gqa-eval", *compared, "--data", data)
        return
    heads = span([place.kv_heads for place in plan.places])
    console.print(
        f"Wrote {output} in {seconds:.1f} s: {heads} -> {plan.options.groups} KV heads, "
        f"KV cache {_cache(plan.layers)}.",
        soft_wrap=True,
    )
    show_what_follows(plan.options, output, console, compared=compared, data=data)


def show_what_follows(
    options: ConvertOptions, output: Path, console: Console, *, compared: Sequence[Path], data: str
) -> None:
    """What the fit did, if there was one, and what to do next: compare those with that text."""
    if options.fit:
        console.print(_what_the_fit_did(output), soft_wrap=True)
        console.print("What is left can be uptrained away. Next:", soft_wrap=True)
    else:
        console.print("A conversion loses quality until it is uptrained. Next:", soft_wrap=True)
    _show_command(console, "gqa-eval", *compared, "--data", data)
    _show_command(console, "gqa-uptrain", output, "--data", data, "--max-tokens", "N")


def _show_command(console: Console, *words: str | Path) -> None:
    console.print(f"  {command_line(*words)}", soft_wrap=True, highlight=False)


def command_line(*words: str | Path) -> str:
    """The words as a shell takes them; what is a path is one there, too, where it begins with a dash."""
    return shlex.join(as_word(word) if isinstance(word, Path) else word for word in words)


def as_word(path: str | Path) -> str:
    """A path as a word of a command line, which doesn't begin with a dash as options do."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _what_the_fit_did(output: Path) -> str:
    fits = [layer["fit"] for layer in read_stages(output)[-1]["layers"]]
    before, after = (mean(fit[name] for fit in fits) for name in ("held_out_before", "held_out_after"))
    kept = sum(fit["steps"] == 0 for fit in fits)
    left = f"; {kept} layers gained nothing and are as merged" if kept else ""
    return (
        f"The fit of {len(fits)} layers took what attention puts out wrongly, on text held out, from {before:.1%} to "
        f"{after:.1%} of its mean square{left}."
    )


def size(nbytes: int) -> str:
    """A number of bytes in the largest decimal unit that keeps it at 1 or more: `1.5 GB`."""
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.4g} {units[0]}"


def _cache(layers: list[LayerPlan]) -> str:
    """What a token takes before and after: in all, or, where its keys and values are of another input, by the site."""
    cached = [layer for layer in layers if layer.cache_bytes_before]
    parts = []
    for site in dict.fromkeys(layer.site for layer in cached):
        there = [layer for layer in cached if layer.site == site]
        before, after = (sum(sizes) for sizes in zip(*map(_cache_bytes, there), strict=True))
        where = f" in {site}" if site else ""
        parts.append(f"{size(before)} -> {size(after)} a token{where}")
    before, after = (sum(sizes) for sizes in zip(*map(_cache_bytes, cached), strict=True))
    return f"{', '.join(parts)} ({_times(before, after)})"


def _times(before: int, after: int) -> str:
    return f"{before / after:.3g}x smaller" if after <= before else f"{after / before:.3g}x larger"


def _cache_bytes(layer: LayerPlan) -> tuple[int, int]:
    return layer.cache_bytes_before, layer.cache_bytes_after


def _but_number(layer: LayerPlan) -> tuple[str | int | None, ...]:
    return (
        layer.site,
        layer.num_heads,
        layer.kv_heads_before,
        layer.kv_heads_after,
        layer.bytes_before,
        layer.bytes_after,
        layer.cache_bytes_before,
    )


def _row(layers: list[LayerPlan]) -> list[str]:
    first, last = layers[0], layers[-1]
    numbers = str(first.layer) if first is last else f"{first.layer}-{last.layer}"
    return [
        f"{first.site} {numbers}" if first.site else numbers,
        str(first.num_heads),
        f"{first.kv_heads_before} -> {first.kv_heads_after}",
        f"{size(sum(layer.bytes_before for layer in layers))} -> {size(sum(layer.bytes_after for layer in layers))}",
        f"{size(sum(layer.cache_bytes_before for layer in layers))} -> "
        f"{size(sum(layer.cache_bytes_after for layer in layers))}",
        f"{sum(layer.parameters_saved for layer in layers):,}",
    ]


def _cache_dtype(plan: Plan) -> str:
    return str(plan.merged[0][0].dtype).removeprefix("torch.")
