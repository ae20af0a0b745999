"""`gqa-convert --to mla`: what it refuses, does and shows."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from gqa.convert.calibration import Progress, calibration_windows, layer_moments, stage
from gqa.convert.console import progress_bar, step_bar
from gqa.convert.damage import Damage
from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.latent.making import make_layer
from gqa.convert.latent.plan import LatentOptions, LatentPlan, plan_latent
from gqa.convert.latent.rewrite import Destination, write_latent
from gqa.convert.latent.target import VLLM_SIZES
from gqa.convert.options import COMMAND_LINE, build_options
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.source import resolve_checkpoint
from gqa.convert.uneven import span
from gqa.convert.view import command_line, show_what_follows, size


def check_target(to: str, **of_heads: object) -> None:
    """Refuse a target that is none, and options that say how heads merge, given by name.

    Raises:
        UserError: with the first of them.
    """
    if to != "mla":
        raise UserError(f"unknown target --to {to!r}{did_you_mean(to, ['gqa', 'mla'])}; known: gqa, mla")
    for name, value in of_heads.items():
        if value:
            raise UserError(
                f"--{name.replace('_', '-')} is for heads that merge, of which --to mla leaves none; leave it out "
                "(--kv-rank, --rope-dim and --kv-budget say how much to keep)"
            )


@dataclass(frozen=True, kw_only=True)
class LatentCommand:
    """What was asked for."""

    latent: LatentOptions
    options: ConvertOptions

    @staticmethod
    def of(latent: Mapping[str, Any], options: Mapping[str, Any]) -> "LatentCommand":
        """The command with these options, not yet checked.

        Raises:
            UserError: a value is wrong.
        """
        asked = build_options(LatentOptions, latent, COMMAND_LINE)
        plain = build_options(ConvertOptions, {**options, "groups": 1, "method": "lowrank"}, COMMAND_LINE)
        return LatentCommand(latent=asked, options=plain)

    def run(
        self,
        checkpoint: str,
        output: Path | None,
        *,
        overwrite: bool,
        dry_run: bool,
        every_layer: bool,
        console: Console,
    ) -> dict[str, Any]:
        """Convert, or say what would be done, and show it.

        Returns:
            The same as JSON values.

        Raises:
            UserError: as `convert_latent`.
        """
        started, source = time.monotonic(), resolve_checkpoint(checkpoint)
        quiet_transformers()
        damages: list[Damage] = []
        place = Destination(source=source, named=checkpoint, output=output, overwrite=overwrite)
        with step_bar(quiet=console.quiet) as progress:
            ready = (lambda *_: None) if dry_run else place.check
            plan = plan_latent(source, self.latent, self.options, progress, ready)
            _show_sizes(plan, console)
            target = place.path(plan.shape.kv_rank)
            if dry_run:
                damages.extend(predicted(plan, progress))
            else:
                with progress_bar(f"Writing {target.name}", plan.total_bytes, quiet=console.quiet) as advance:
                    write_latent(plan, target, overwrite=overwrite, advance=advance, progress=progress)
        if dry_run:
            _show_damages(damages, console, every_layer=every_layer)
            forecast = [{"keys": damage.keys[0], "values": damage.values[0]} for damage in damages]
            return plan.to_json() | {"forecast": forecast, "output": None}
        seconds = time.monotonic() - started
        compared = [source, target] if plan.source.original_runs else [target]
        console.print(f"Wrote {target} in {seconds:.1f} s.", soft_wrap=True)
        console.print(_readers(plan, target), soft_wrap=True, highlight=False)
        show_what_follows(plan.options, target, console, compared=compared, data="TEXT")
        return plan.to_json() | {"output": str(target)}


def predicted(plan: LatentPlan, progress: Progress = lambda *_: None) -> Iterator[Damage]:
    """What every layer is predicted to lose, by the calibration if there is one. See `gqa.convert.damage`.

    Raises:
        UserError: the checkpoint or the text can't be used.
    """
    calibration, layers = plan.options.calibration, plan.source.shape.num_layers
    if calibration:
        windows, _ = calibration_windows(plan.source.checkpoint, calibration, progress)
        for layer, moments in layer_moments(stage(plan.source.checkpoint, calibration), windows, progress=progress):
            yield make_layer(plan, layer, moments)[1]
        return
    for layer in range(layers):
        yield make_layer(plan, layer)[1]
        progress(f"layer {layer + 1} of {layers}", layer + 1, layers)


def _show_sizes(plan: LatentPlan, console: Console) -> None:
    """What is cached, before and after."""
    shape, heads = plan.shape, [place.kv_heads for place in plan.source.places]
    before, after = plan.cache_bytes_before, plan.cache_bytes_after
    console.print(
        f"A {plan.source.rewritten_from or plan.source.family.model_type} as a {shape.model_type}: a latent of "
        f"{shape.kv_rank} and a rotary key of {shape.rope_dim} in place of {span(heads)} keys and values of "
        f"{plan.source.shape.head_dim}. KV cache {size(before)} -> {size(after)} a token, {after / before:.3g} of what "
        "it was.",
        soft_wrap=True,
        highlight=False,
    )


def _readers(plan: LatentPlan, target: Path) -> str:
    """Who runs the result."""
    shape = plan.shape
    if shape.has_constant and plan.no_engine:
        return f"Only transformers runs it; no engine holds it as a deepseek_v3: {plan.no_engine}."
    if shape.has_constant:
        return "Only transformers runs it; what llama.cpp, mlx-lm and vLLM run is made with --model-type deepseek_v3."
    command = command_line("gqa-export", "gguf", target, Path(f"{target.name}.gguf"))
    said = f"Engines run it too; for llama.cpp: {command}"
    if (shape.kv_rank, shape.rope_dim) in VLLM_SIZES:
        return said
    sizes = " or ".join(f"--kv-rank {rank} --rope-dim {rope}" for rank, rope in VLLM_SIZES)
    return f"{said}\nvLLM's kernels do not take these sizes, only {sizes}."


def _show_damages(damages: list[Damage], console: Console, *, every_layer: bool) -> None:
    keys, values = (mean(getattr(damage, part)[0] for damage in damages) for part in ("keys", "values"))
    if every_layer:
        table = Table(title="Predicted damage", title_justify="left")
        for column in ("layer", "keys", "values", "both"):
            table.add_column(column, justify="right")
        for layer, damage in enumerate(damages):
            table.add_row(str(layer), f"{damage.keys[0]:.3f}", f"{damage.values[0]:.3f}", f"{damage.total:.3f}")
        console.print(table)
    console.print(
        f"Predicted damage {keys + values:.2f}: {keys:.2f} of the scores, {values:.2f} of the values, the mean over "
        f"{len(damages)} layers; 0 is no change, 1 as bad as leaving one of them out.",
        soft_wrap=True,
        highlight=False,
    )
