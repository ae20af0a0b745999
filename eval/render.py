"""A report in words: the table of results, as a terminal and report.md show it, and how it was measured."""

import shlex
from typing import TYPE_CHECKING

from gqa.eval.cache import CacheSize
from gqa.eval.estimate import Mean
from gqa.eval.material import count

if TYPE_CHECKING:
    from gqa.eval.report import Report

HEADINGS = (
    "checkpoint",
    "perplexity",
    "NLL ± s.e.",
    "ratio ± s.e.",
    "bits/byte",
    "KV bytes/token",
    "params",
    "size",
)


def table_cells(report: "Report") -> list[tuple[str, ...]]:
    """The table of results under `HEADINGS`, a tuple for each checkpoint."""
    return [
        (
            row.label,
            _perplexity(row.perplexity),
            _with_error(row.nll, 4),
            "1" if row is report.rows[0] else _with_error(row.ratio, 3),
            "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}",
            " + ".join(f"{part.bytes_per_token:,.0f}" for part in row.result.kv_cache.parts),
            _scaled(row.result.parameters),
            f"{_scaled(row.result.weight_bytes)}B",
        )
        for row in report.rows
    ]


def measured_how(report: "Report") -> list[str]:
    """Sentences that say what the numbers mean and how to make them again."""
    options, row, machine = report.options, report.rows[0], report.machine
    sample, cache = row.sample, row.result.kv_cache
    error = f"over {sample.num_clusters} {sample.unit}s" if sample.num_clusters > 1 else "not to be had from one window"
    agree = all(part.agree for row in report.rows for part in row.result.kv_cache.parts)
    formula = (
        "the formula from the config gives the same" if agree else "the formula from the config differs, see Notes"
    )
    each = "" if machine["processes"] == 1 else " each"
    return [
        *row.subject.material.sentences(options),
        f"Bits per byte are over the {sample.num_bytes:,} bytes of text that these tokens stand for. NLL is in nats.",
        f"Standard errors are {error}; that of the ratio is of the paired difference on the same tokens.",
        f"KV bytes per token are read out of a real cache of {_tokens(cache)}, one sequence, all layers; {formula}.",
        f"Computed in {row.result.dtype} on {machine['accelerator'] or machine['cpu']} ({machine['system']}), "
        f"{count(machine['processes'], 'process')}, {count(machine['threads'], 'thread')}{each}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + ".",
        f"Command: `{shlex.join(report.command)}`, {report.created}.",
    ]


def to_markdown(report: "Report") -> str:
    """The text of report.md."""
    aligned = ["---", *("---:" for _ in HEADINGS[1:])]
    table = [HEADINGS, aligned, *table_cells(report)]
    lines = [f"# Evaluation on {report.options.data}", ""]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in table]
    if notes := report.notes():
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    lines += ["", "## How it was measured", "", *(f"- {sentence}" for sentence in measured_how(report))]
    return "\n".join(lines) + "\n"


def _tokens(cache: CacheSize) -> str:
    if cache.cross is None:
        return f"{cache.context} tokens"
    return f"{cache.context} tokens of the target, then of {cache.cross.context} of the source (cross-attention)"


def _perplexity(value: float) -> str:
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _with_error(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return "-"
    error = "" if mean.standard_error is None else f" ± {mean.standard_error:.{digits}f}"
    return f"{mean.value:.{digits}f}{error}"


def _scaled(number: float) -> str:
    """Three digits and the prefix of a thousand: 7.87M."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.{0 if prefix == '' else max(0, 3 - len(str(int(number))))}f}{prefix}"
        number /= 1000
    return f"{number:.2f}T"
