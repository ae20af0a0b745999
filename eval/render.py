"""A report in words: the table of results and how it was measured, for the terminal, report.md and report.html."""

import shlex

from gqa.eval.document import Checkpoint, Document, Machine
from gqa.eval.material import count
from gqa.eval.words import nbytes, perplexity, scaled, with_error

HEADINGS = (
    "checkpoint",
    "KV heads",
    "perplexity",
    "NLL ± s.e.",
    "ratio ± s.e.",
    "bits/byte",
    "KV bytes/token",
    "params",
    "size",
)


def table_cells(document: Document) -> list[tuple[str, ...]]:
    """The table of results under `HEADINGS`, a tuple for each checkpoint."""
    return [
        (
            row.label,
            "MLA" if row.attention == "latent" else str(row.num_kv_heads),
            perplexity(row.perplexity),
            with_error(row.nll, row.nll_standard_error, 4),
            "1" if row is document.first else with_error(row.perplexity_ratio, ratio_error(row), 3),
            "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}",
            " + ".join(f"{part.bytes_per_token:,.0f}" for part in row.kv_cache.parts),
            scaled(row.parameters),
            f"{scaled(row.weight_bytes)}B",
        )
        for row in document.checkpoints
    ]


def ratio_error(row: Checkpoint) -> float | None:
    """The standard error of the ratio of perplexities, which that of the paired difference implies."""
    if row.perplexity_ratio is None or row.nll_above_first_standard_error is None:
        return None
    return row.perplexity_ratio * row.nll_above_first_standard_error


def measured_how(document: Document) -> list[str]:
    """Sentences that say what the numbers mean and how to make them again, in Markdown."""
    return [*document.method, *_what_they_mean(document), *_where_from(document)]


def machine_words(machine: Machine) -> str:
    """`AMD EPYC (Linux x86_64), 1 process, 2 threads`."""
    each = "" if machine.processes == 1 else " each"
    threads = "" if machine.threads is None else f", {count(machine.threads, 'thread')}{each}"
    name = machine.accelerator or machine.cpu or "an unknown processor"
    return f"{name} ({machine.system or 'unknown system'}), {count(machine.processes, 'process')}{threads}"


def _what_they_mean(document: Document) -> list[str]:
    row = document.first
    sample = row.sample
    error = f"over {sample.clusters} {sample.cluster}s" if sample.clusters > 1 else "not to be had from one window"
    agree = all(
        part.formula_bytes == part.measured_bytes for each in document.checkpoints for part in each.kv_cache.parts
    )
    counted = f", {row.kv_cache.dtype}" if row.kv_cache.dtype else ""
    formula = "gives the same" if agree else "differs, see Notes"
    return [
        f"Bits per byte are over the {sample.bytes:,} bytes of text that these tokens stand for. NLL is in nats.",
        f"Standard errors are {error}; that of the ratio is of the paired difference on the same tokens.",
        f"KV bytes per token are read out of a real cache of {_cached(row)}, one sequence, all layers{counted}; "
        f"the formula from the config {formula}.",
    ]


def precision_words(row: Checkpoint) -> str:
    """`bfloat16`, or `float32 (stored in bfloat16)`."""
    return row.dtype if row.stored_dtype in (None, row.dtype) else f"{row.dtype} (stored in {row.stored_dtype})"


def _computed(document: Document) -> str:
    """In what, on what, and why in that where nobody asked for it."""
    rows = document.checkpoints
    precisions = " and ".join(dict.fromkeys(precision_words(row) for row in rows))
    lacking = dict.fromkeys(row.kv_cache.dtype for row in rows if row.kv_cache.dtype not in (None, row.dtype))
    why = f"; this processor has no products in {' and '.join(map(str, lacking))}" if lacking else ""
    return f"Computed in {precisions} on {machine_words(document.machine)}{why}."


def _where_from(document: Document) -> list[str]:
    if document.merged_from is None:
        versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
        return [
            _computed(document),
            f"Versions: {versions}.",
            f"Command: `{shlex.join(document.command)}`, {document.created}.",
        ]
    return [
        f"{', '.join(source.labels)}: `{shlex.join(source.command)}`, {source.created}, on "
        f"{machine_words(source.machine)}; {', '.join(f'{name} {v}' for name, v in source.versions.items())}."
        for source in document.merged_from
    ] + [f"Merged by `{shlex.join(document.command)}`, {document.created}."]


def _cached(row: Checkpoint) -> str:
    cache = row.kv_cache
    if cache.cross is None:
        return f"{cache.context} tokens"
    return f"{cache.context} tokens of the target, then of {cache.cross.context} of the source (cross-attention)"


def speed_setup(document: Document) -> str | None:
    """How speed was measured, in a sentence; None where it was not."""
    setup = document.speed
    if setup is None:
        return None
    bandwidth = setup.bandwidth_bytes_per_second
    said = [
        f"{setup.cache} cache" if setup.cache else None,
        {True: "compiled", False: "not compiled", None: None}[setup.compiled],
        setup.dtype,
        f"attention {setup.attention}" if setup.attention else None,
        f"median of {setup.repeats} repeats" if setup.repeats else None,
        f"memory read at {nbytes(bandwidth)}/s" if bandwidth else None,
    ]
    return f"Speed: {', '.join(part for part in said if part)}." if any(said) else None
