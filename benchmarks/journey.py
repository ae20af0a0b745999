"""A model's way from nothing to healed conversions: what the benchmarks share that train their own models.

    DIRECTORY/
      train.jsonl, heldout.jsonl    the text
      initial/                      random weights, and the tokenizer trained on the text
      model/                        the model, pretrained
      model-longer/                 the same after as many steps more as its conversions get
      METHOD-gN/, METHOD-gN-healed/ a conversion to N KV heads, and what uptraining makes of it
      report/                       all of them on held-out text
      seconds.json                  what every stage took, of the clock and of the processor

Every stage goes on where it was stopped, and none is done twice.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from gqa.convert.directory import atomic_directory
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.render import HEADINGS, table_cells
from gqa.recipes.demo.corpus import HELD_OUT_FILE, TRAIN
from gqa.uptrain import UptrainConfig, uptrain
from gqa.uptrain.run import UptrainResult

PRETRAINING: dict[str, Any] = {"learning_rate": 2e-3, "warmup_ratio": 0.05, "min_lr_ratio": 0.05, "log_every": 1}
"""What the models have in common that are trained from nothing."""


def healing_rates(lossy: float, nearly_whole: float) -> dict[str, dict[str, Any]]:
    """Settings of what comes after: for what merging by the mean has lost, and for what hardly lost anything."""
    rates = {"mean": lossy, "lowrank": nearly_whole, "model": nearly_whole}
    return {name: {"learning_rate": rate, "warmup_ratio": 0.1} for name, rate in rates.items()}


def train(directory: Path, checkpoint: str, output: str, options: Mapping[str, Any]) -> UptrainResult:
    """Train DIRECTORY/`checkpoint` on the directory's text into DIRECTORY/`output`."""
    held_out = {"validation_data": str(directory / HELD_OUT_FILE)}  # watched, never chosen by
    return uptrain(
        UptrainConfig(
            checkpoint=str(directory / checkpoint),
            data=str(directory / TRAIN),
            output=directory / output,
            overwrite=True,
            cache_dir=directory / "tokens",
            teacher="none",
            **{**held_out, **options},
        )
    )


@dataclass(frozen=True, kw_only=True)
class Journey:
    """One model and what is done to it."""

    directory: Path
    make: Callable[[Path], None]
    """Writes train.jsonl, heldout.jsonl and initial/ into a directory."""

    training: Mapping[str, Any]
    """Options of the pretraining, `max_steps` among them."""

    healing: Mapping[str, Mapping[str, Any]]
    """Those that are other in healing, by the method; under `model` for the model itself, trained on."""

    share: float
    """Steps of healing, as a share of those of pretraining (the paper's alpha)."""

    scoring: Mapping[str, Any]
    """Options of the evaluation, its data apart."""

    methods: tuple[str, ...]
    groups: tuple[int, ...]

    def run(self) -> str:
        """All stages that are not done yet; the table of results as Markdown."""
        quiet_transformers()
        if not self.directory.exists():
            with atomic_directory(self.directory) as work:
                (work / "initial").mkdir()
                self.make(work)
        self._stage("model", lambda: train(self.directory, "initial", "model", self.training))
        names = [f"{method}-g{groups}" for groups in self.groups for method in self.methods]
        for name in names:
            self._stage(name, lambda name=name: self._convert(name))
        self._stage("model-longer", lambda: self._heal("model", "model-longer"))
        for name in names:
            self._stage(f"{name}-healed", lambda name=name: self._heal(name, f"{name}-healed"))
        rows = ["model", "model-longer", *(row for name in names for row in (name, f"{name}-healed"))]
        return self._evaluate(rows)

    def _convert(self, name: str) -> None:
        method, _, groups = name.rpartition("-g")
        options = ConvertOptions(groups=int(groups), method=method)
        convert(self.directory / "model", self.directory / name, options)

    def _heal(self, name: str, output: str) -> None:
        steps = math.ceil(self.share * self.training["max_steps"])
        changed = {**self.healing[name.partition("-g")[0]], "max_steps": steps, "eval_every": steps}
        train(self.directory, name, output, {**self.training, **changed})

    def _evaluate(self, names: list[str]) -> str:
        options = EvalOptions(data=str(self.directory / HELD_OUT_FILE), **self.scoring)
        named = [f"{name}={self.directory / name}" for name in names]
        report = evaluate(named, options, self.directory / "report", overwrite=True)
        seconds = self._seconds()
        table = [(*HEADINGS, "made in"), ("---", *("---:" for _ in HEADINGS))]
        table += [
            (*cells, "{:.0f} s ({:.0f} s)".format(*seconds[cells[0]])) for cells in table_cells(report.document())
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in table)

    def _stage(self, name: str, make: Callable[[], object]) -> None:
        """Make DIRECTORY/`name` unless it is there, and add to the seconds that it took."""
        if (self.directory / name).exists():
            return
        began = time.monotonic(), time.process_time()
        try:
            make()
        finally:
            seconds = self._seconds()
            took = time.monotonic() - began[0], time.process_time() - began[1]
            seconds[name] = [before + more for before, more in zip(seconds.get(name, [0.0, 0.0]), took, strict=True)]
            (self.directory / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"{name}: {seconds[name][0]:.0f} s", err=True)

    def _seconds(self) -> dict[str, list[float]]:
        path = self.directory / "seconds.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
