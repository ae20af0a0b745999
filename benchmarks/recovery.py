"""What uptraining wins back: loss on held-out text against tokens, for each way to merge and each thing to learn from.

A run converts, trains for a share of the pretraining's tokens, and notes the held-out loss ten times on the way. What
is compared are whole runs on equal tokens, each with its own cosine. Results are kept in a file as they come, and a run
that was stopped goes on behind them. Run it as

    python benchmarks/recovery.py CHECKPOINT --data TRAIN.jsonl --held-out HELDOUT.jsonl --pretraining-tokens 14000000
    python benchmarks/recovery.py ... --plan paper     # the paper's figures 4 and 5 at this scale
    python benchmarks/recovery.py ... --found --plot benchmarks/recovery.svg

Plan `compare`: {mean, lowrank} x {cross-entropy, KL}, at half, a quarter and one of the heads; three orders of the data
at one head. Plan `fitted`: KL behind a layerwise fit on 65,536 tokens of the same text, at as many heads each. Plan
`paper`: mean, first and random at one head (Figure 4, which is of MQA), and mean at a quarter and at one after 0, 5 and
10% of the pretraining's tokens (Figure 5), by cross-entropy as there.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from side_by_side import measured

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.layerfit import FitOptions
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.uptrain import UptrainConfig, uptrain

FITTED, FIT_TOKENS = "lowrank and fit", 65_536
CLOSED = (0.90, 0.95, 0.99)
LOOKS = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    method: str
    groups: int
    learns_from: Literal["text", "parent"] = "text"
    alpha: float = 0.05
    """share of the pretraining's tokens"""
    seed: int = 0

    @property
    def label(self) -> str:
        """Its line in tables and pictures."""
        return f"{self.method}, {'KL' if self.learns_from == 'parent' else 'cross-entropy'}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs share."""

    checkpoint: Path
    data: str
    held_out: str
    window: int
    pretraining_tokens: int
    batch_tokens: int
    learning_rate: dict[str, float]
    """by the method; what has lost much heals at a higher rate"""
    training: dict[str, Any]


def compare(heads: int, seeds: int) -> Iterator[Case]:
    """Both methods and both things to learn from, the smallest number of heads first."""
    for groups in (1, heads // 4, heads // 2):
        for method in ("mean", "lowrank"):
            for learns_from in ("text", "parent"):
                for seed in range(seeds if groups == 1 else 1):
                    yield Case(method=method, groups=groups, learns_from=learns_from, seed=seed)


def paper(heads: int, _: int) -> Iterator[Case]:
    """The paper's two experiments on conversion: the mean at one head and after 5% is in both."""
    for alpha in (0.05, 0.10):
        yield from (Case(method="mean", groups=groups, alpha=alpha) for groups in (heads // 4, 1))
    yield from (Case(method=method, groups=1) for method in ("first", "random"))


def fitted(heads: int, _: int) -> Iterator[Case]:
    """What is left to win behind a fit."""
    yield from (Case(method=FITTED, groups=groups, learns_from="parent") for groups in (heads // 4, 1, heads // 2))


PLANS = {"compare": compare, "fitted": fitted, "paper": paper}


def known(found: dict[str, Any]) -> Iterator[Case]:
    """The runs that results are there of."""
    yield from (Case(**json.loads(key)) for key in found if key.startswith("{"))


def held_out_loss(setting: Setting, checkpoint: Path) -> float:
    """NLL in nats a token, by gqa-eval."""
    options = EvalOptions(data=setting.held_out, window=setting.window, max_tokens=40_960, dtype="float32")
    return evaluate([checkpoint], options).rows[0].nll.value


def conversion(setting: Setting, case: Case) -> ConvertOptions:
    """How a run's checkpoint is made."""
    if case.method != FITTED:
        return ConvertOptions(groups=case.groups, method=case.method, seed=case.seed, dtype="float32")
    text = CalibrationOptions(data=setting.data, tokens=FIT_TOKENS, sequence_length=setting.window, seed=case.seed)
    fit = FitOptions(seed=case.seed)
    return ConvertOptions(groups=case.groups, method="lowrank", calibration=text, fit=fit, dtype="float32")


def measure(setting: Setting, case: Case) -> dict[str, Any]:
    """Convert, train, and judge: the loss by gqa-eval before and after, and that of the validations on the way."""
    steps = round(case.alpha * setting.pretraining_tokens / setting.batch_tokens)
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        converted, trained = Path(name) / "converted", Path(name) / "trained"
        convert(setting.checkpoint, converted, conversion(setting, case))
        before, began = held_out_loss(setting, converted), time.monotonic()
        result = uptrain(
            UptrainConfig(
                checkpoint=str(converted),
                data=setting.data,
                validation_data=setting.held_out,
                output=trained,
                teacher=str(setting.checkpoint) if case.learns_from == "parent" else "none",
                sequence_length=setting.window,
                batch_tokens=setting.batch_tokens,
                max_steps=steps,
                eval_every=max(1, steps // LOOKS),
                save_every=steps,
                seed=case.seed,
                learning_rate=setting.learning_rate.get(case.method, setting.learning_rate["mean"]),
                quiet=True,
                **setting.training,
            )
        )
        seconds, after = time.monotonic() - began, held_out_loss(setting, trained)
    curve = [[line["tokens"], line["validation_loss"]] for line in result.validation]
    return {"before": before, "after": after, "curve": curve, "seconds": seconds}


def tokens_to_close(curve: list[list[float]], parent: float, share: float) -> float | None:
    """Tokens after which so much of the gap that the conversion opened is closed; None: not within the run."""
    (_, opened), *_ = curve
    wanted = parent + (1 - share) * (opened - parent)
    for (tokens, loss), (more_tokens, less_loss) in pairwise(curve):
        if less_loss <= wanted:
            return tokens + (more_tokens - tokens) * (loss - wanted) / (loss - less_loss)
    return None


def table(found: list[tuple[Case, dict[str, Any]]], parent: float, level: float) -> str:
    """A line for every kind of run: the mean over seeds, and half their range.

    Args:
        found: the runs.
        parent: the parent's loss by gqa-eval.
        level: the parent's loss on what validation reads.
    """
    names = " | ".join(f"tokens to close {share:.0%}" for share in CLOSED)
    lines = [
        f"| KV heads | method, loss | share of pretraining | before | after | {names} |",
        "|---" * (5 + len(CLOSED)) + "|",
    ]
    kinds: dict[tuple[int, str, float], list[dict[str, Any]]] = {}
    for case, result in found:
        kinds.setdefault((case.groups, case.label, case.alpha), []).append(result)
    for (groups, label, alpha), results in sorted(
        kinds.items(), key=lambda item: (-item[0][0], item[0][2], item[0][1])
    ):
        before, after = (_spread([result[key] - parent for result in results]) for key in ("before", "after"))
        closed = [[tokens_to_close(result["curve"], level, share) for result in results] for share in CLOSED]
        lines.append(f"| {groups} | {label} | {alpha:.0%} | {before} | {after} | {' | '.join(map(_middle, closed))} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    return f"{mean:.4f}" + (f" ± {half:.4f}" if half else "")


def _middle(tokens: list[float | None]) -> str:
    reached = [count for count in tokens if count is not None]
    return f"{statistics.mean(reached):,.0f}" if len(reached) == len(tokens) else "not reached"


def draw(found: list[tuple[Case, dict[str, Any]]], level: float, output: Path) -> None:
    """Loss above the parent's against tokens, a panel for every number of KV heads."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "gqa", "svg.fonttype": "none", "font.size": 11}
    counts = sorted({case.groups for case, _ in found}, reverse=True)
    labels = list(dict.fromkeys(f"{case.label}, {case.alpha:.0%}" for case, _ in found))
    figure = Figure(figsize=(4 * len(counts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    lines: dict[str, Any] = {}
    for panel, groups in zip(panels, counts, strict=True):
        for case, result in found:
            if case.groups == groups:
                tokens, losses = zip(*result["curve"], strict=True)
                label = f"{case.label}, {case.alpha:.0%}"
                millions, above = [count / 1e6 for count in tokens], [loss - level for loss in losses]
                (lines[label],) = panel.plot(millions, above, color=f"C{labels.index(label)}")
        panel.set_title(f"{groups} KV heads" if groups > 1 else "1 KV head")
        panel.set_xlabel("million tokens")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=3, frameon=False)
    panels[0].set_ylabel("loss above the parent's, nats")
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def validated(setting: Setting) -> float:
    """The parent's own loss on what validation reads: a run that learns nothing, at its step 0."""
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        result = uptrain(
            UptrainConfig(
                checkpoint=str(setting.checkpoint),
                data=setting.data,
                validation_data=setting.held_out,
                output=Path(name) / "parent",
                teacher="none",
                sequence_length=setting.window,
                batch_tokens=setting.window,
                max_steps=1,
                quiet=True,
                **setting.training,
            )
        )
    return result.validation[0]["validation_loss"]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A multi-head checkpoint.")],
    data: Annotated[str, typer.Option(help="Text to train on.")],
    held_out: Annotated[str, typer.Option(help="Text to judge by.")],
    pretraining_tokens: Annotated[int, typer.Option(help="What the checkpoint was trained on.")],
    plan: Annotated[str, typer.Option(help="compare, fitted or paper.")] = "compare",
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("runs/recovery.jsonl"),
    alpha: Annotated[
        float | None, typer.Option(help="Another share of the pretraining in place of every 0.05.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Orders of the data at one KV head.")] = 3,
    window: int = 256,
    batch_tokens: int = 2048,
    rate: Annotated[float, typer.Option(help="Peak learning rate where weights are averaged or left out.")] = 1e-3,
    rate_lowrank: Annotated[float, typer.Option(help="The same after a low-rank merge.")] = 3e-4,
    rate_fitted: Annotated[float, typer.Option(help="The same after a fit.")] = 1e-4,
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the models.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs at once: small ones leave most of a GPU idle.")] = 1,
    only_found: Annotated[
        bool, typer.Option("--found", help="Measure nothing: show all that the results hold, of any plan.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw what has been found: .svg or .png.")] = None,
) -> None:
    """Do what is not done yet, and print the table."""
    quiet_transformers()
    setting = Setting(
        checkpoint=checkpoint,
        data=data,
        held_out=held_out,
        window=window,
        pretraining_tokens=pretraining_tokens,
        batch_tokens=batch_tokens,
        learning_rate={"mean": rate, "lowrank": rate_lowrank, FITTED: rate_fitted},
        training={"compile": compile_model, "validation_tokens": 40_960},
    )
    heads = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
    found: dict[str, Any] = dict(map(json.loads, results.read_text().splitlines())) if results.exists() else {}
    results.parent.mkdir(parents=True, exist_ok=True)

    def keep(key: str, value: Any) -> Any:
        found[key] = value
        with results.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")
        return value

    parent = found["parent"] if "parent" in found else keep("parent", held_out_loss(setting, checkpoint))
    level = found["validated"] if "validated" in found else keep("validated", validated(setting))
    planned = known(found) if only_found else PLANS[plan](heads, seeds)
    wanted = [replace(case, alpha=alpha) if alpha and case.alpha == 0.05 else case for case in planned]
    missing = [case for case in wanted if json.dumps(asdict(case)) not in found]
    for case, result in measured(measure, setting, missing, jobs):
        keep(json.dumps(asdict(case)), result)
        typer.echo(f"{case}: {result['before'] - parent:.4f} -> {result['after'] - parent:.4f}", err=True)
    done = [(case, found[json.dumps(asdict(case))]) for case in wanted]
    typer.echo(table(done, parent, level))
    if plot is not None:
        draw(done, level, plot)


if __name__ == "__main__":
    typer.run(main)
