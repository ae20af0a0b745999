"""How good a predictor the predicted damage is: beside the loss measured, for every method and number of KV heads.

What decides is whether the order is right, since predictions serve to choose: Spearman's rank correlation. Nothing is
written; converted layers run in place of the original's, in float32.

    python benchmarks/prediction.py recipes/demo/checkpoint heldout.jsonl
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from gqa.convert.calibration import CalibrationOptions, calibration_windows, stage
from gqa.convert.forecast import forecast
from gqa.convert.loss import mean_nll
from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.plan import ConvertOptions, Plan, plan_conversion
from gqa.convert.pretrained import quiet_transformers


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A multi-head checkpoint.")],
    data: Annotated[str, typer.Argument(help="Text that the model has not seen.")],
    tokens: Annotated[int, typer.Option(help="Of it.")] = 40960,
    window: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
) -> None:
    """Print the prediction and the measurement of every way to merge, and how well they agree."""
    quiet_transformers()
    options = CalibrationOptions(data=data, tokens=1, held_out_tokens=tokens, sequence_length=window, dtype="float32")
    _, ids = calibration_windows(checkpoint, options)
    predicted = forecast(plan_conversion(checkpoint, ConvertOptions(groups=1)))
    parent = mean_nll(stage(checkpoint, options), ids)
    print(f"{checkpoint.name}: {parent:.4f} nats with {predicted.kv_heads} KV heads\n")
    print(
        "| method | KV heads | keys | values | predicted damage | NLL above the original's |\n|---|---|---|---|---|---|"
    )
    rows = []
    for method, groups in sorted(predicted.damages, key=lambda way: predicted.total(*way)):
        plan = plan_conversion(checkpoint, ConvertOptions(groups=groups, method=method))
        gap = converted_nll(plan, options, ids) - parent
        keys, values = predicted.keys(method, groups), predicted.values(method, groups)
        rows.append((method, keys, values, gap))
        print(f"| {method} | {groups} | {keys:.3f} | {values:.3f} | {keys + values:.3f} | {gap:.4f} |", flush=True)
    print("\n| rank correlation with the loss | keys + values | keys | values |\n|---|---|---|---|")
    show_correlations("all methods", rows)
    show_correlations("without random", [row for row in rows if row[0] != "random"])


def converted_nll(plan: Plan, options: CalibrationOptions, ids: torch.Tensor) -> float:
    """The NLL of a conversion."""

    def layer_tensors(layer: int) -> dict[str, torch.Tensor]:
        tensors = disk_tensors(plan, layer, merge_layer(plan, layer).weights)
        return {name.removeprefix(plan.prefixes[layer]): tensor for name, tensor in tensors.items()}

    return mean_nll(stage(plan.checkpoint, options, groups=plan.options.groups), ids, layer_tensors)


def show_correlations(name: str, rows: list[tuple[str, float, float, float]]) -> None:
    """One row of the second table."""
    _, keys, values, gaps = (list(column) for column in zip(*rows, strict=True))
    sums = [key + value for key, value in zip(keys, values, strict=True)]
    print(f"| {name} | " + " | ".join(f"{spearman(scores, gaps):.3f}" for scores in (sums, keys, values)) + " |")


def spearman(left: list[float], right: list[float]) -> float:
    """Spearman's rank correlation of figures without ties."""
    ranks = [torch.tensor(figures, dtype=torch.float64).argsort().argsort().double() for figures in (left, right)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


if __name__ == "__main__":
    typer.run(main)
