"""The story of a conversion to latent attention: plan, stream every tensor from disk to disk, say what was done."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from gqa.convert.ahead import LayerStore, layers_ahead
from gqa.convert.calibration import Progress
from gqa.convert.directory import check_output, check_space
from gqa.convert.latent.making import latent_layers, latent_making
from gqa.convert.latent.plan import LatentOptions, LatentPlan, plan_latent
from gqa.convert.ondemand import LayersOnDemand
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import new_stage, read_stages, write_stages
from gqa.convert.rewrite import beside, ignore_progress, measured_on, new_checkpoint
from gqa.convert.sidefiles import write_config
from gqa.convert.tokenizer import write_tokenizer
from gqa.convert.writer import Advance, plan_shards, write_shards


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the output goes."""

    source: Path
    """what is converted"""
    named: str
    """the same as it was named: a directory, or a Hub id"""
    output: Path | None
    """None: beside it, by the latent's rank"""
    overwrite: bool
    """whether an output that exists is replaced"""

    def path(self, kv_rank: int) -> Path:
        """With a latent of that rank."""
        return self.output or beside(self.named, f"-mla{kv_rank}")

    def check(self, kv_rank: int | None, nbytes: int) -> None:
        """A look before what takes long, as far as the rank is known. See `gqa.convert.latent.plan.Ready`."""
        if self.output is None and kv_rank is None:
            return
        output = self.path(kv_rank or 0)
        check_output(output, [self.source], overwrite=self.overwrite)
        check_space(output, nbytes)


def convert_latent(
    checkpoint: Path,
    output: Path,
    latent: LatentOptions,
    options: ConvertOptions,
    *,
    overwrite: bool = False,
    advance: Advance = ignore_progress,
    progress: Progress = lambda *_: None,
) -> LatentPlan:
    """Convert the checkpoint directory `checkpoint` into the new directory `output`. See `gqa.convert.rewrite.convert`.

    Raises:
        UserError: the input, the options or the output can't be used; nothing is left behind.
    """
    place = Destination(source=checkpoint, named=str(checkpoint), output=output, overwrite=overwrite)
    plan = plan_latent(checkpoint, latent, options, progress, place.check)
    write_latent(plan, output, overwrite=overwrite, advance=advance, progress=progress)
    return plan


def write_latent(
    plan: LatentPlan,
    output: Path,
    *,
    overwrite: bool = False,
    advance: Advance = ignore_progress,
    progress: Progress = lambda *_: None,
) -> None:
    """Carry out a plan. See `convert_latent`."""
    checkpoint = plan.source.checkpoint
    with ExitStack() as to_the_end, new_checkpoint(checkpoint, output, plan.total_bytes, overwrite=overwrite) as work:
        write_tokenizer(checkpoint, work)
        made = to_the_end.enter_context(_made(plan, output, progress))
        write_shards(work, plan_shards(plan.tensors, plan.options.max_shard_bytes), made.take, advance)
        write_config(work, plan.config)
        write_stages(work, [*read_stages(checkpoint), latent_stage(plan, made.records)])


def latent_stage(plan: LatentPlan, records: Mapping[int, Mapping[str, object]]) -> dict[str, object]:
    """The conversion's entry in `gqa.json`, with what became of every layer."""
    source, options = plan.source, plan.options
    layers = range(source.shape.num_layers)
    return new_stage(
        "convert",
        source.checkpoint,
        model_type=plan.shape.model_type,
        rewritten_from=source.rewritten_from or source.family.model_type,
        own_code=None,
        method="latent",
        grouping="none",
        restrictions=[],
        **plan.facts(),
        **measured_on(source.checkpoint, options, source.shape.hidden_size),
        seed=options.seed,
        dtype=options.dtype,
        num_heads=source.shape.num_heads,
        kv_heads_before=[place.kv_heads for place in source.places],
        kv_heads_after=[source.shape.num_heads for _ in layers],
        layers=[dict(records[layer]) for layer in sorted(records)],
    )


def _made(plan: LatentPlan, output: Path, progress: Progress) -> AbstractContextManager[LayerStore | LayersOnDemand]:
    if plan.options.calibration:
        return layers_ahead(latent_making(plan), output, progress)
    return latent_layers(plan)
