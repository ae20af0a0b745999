"""The report of an evaluation, for programs (report.json) and for people (report.html, report.md).

report.json is one object, `gqa.eval.document.Document`; `report.schema.json` beside this file is its JSON Schema.

- `format`: 2; `created`: UTC, ISO 8601; `command`: the arguments as typed; `versions`; `machine`;
- `speed`: how speed was measured, and what it says in words; null where it was not;
- `options`: every field of `EvalOptions`, as given; `hub_data`: the data, if that was a dataset on the Hub;
- `method`: what was read and how it was scored, in sentences; `notes`: what a reader must know to compare the rows;
- `checkpoints`: an object each, in the order given. `perplexity`, `nll` (nats a token) with `nll_standard_error`;
  against the first checkpoint, null for other tokenizers, `perplexity_ratio` and `nll_above_first`, with the paired
  `nll_above_first_standard_error`; `bits_per_byte`; `sample`: what was scored (tokens, bytes of text they stand for,
  windows, documents, the clusters of the standard error, the BOS policy with `auto` resolved, the SHA-256 of the text;
  for encoder-decoders the objective, pairs, tokens (or seconds) of their sources, sources and targets cut);
  `kv_cache`: bytes of one sequence of `context` tokens by `formula_bytes` and `measured_bytes`, and `bytes_per_token`,
  of numbers in `dtype`;
  for encoder-decoders these are of the target, and the same of the source are in `cross`; `history`: what gqa.json
  says of its making, with the curves of its training, null where there is none;
  `perplexity_ratio_interval`: the 95% interval of the ratio, by bootstrap over the clusters;
  `contexts`: for every window length `perplexity`, `nll`, `tokens` and the paired `nll_above_first`;
  `positions`: NLL of tokens with `first` to `last` tokens before them in the longest window;
  `divergence` of the first checkpoint (`gqa.eval.divergence`): `kl_mean`, `kl_percentiles`, `top1_agreement`;
  `recall` at each length (`gqa.eval.recall`); `tasks`: by task and metric `value` and `standard_error`;
  `continuations` of prompts; `layers`: attention beside the first checkpoint's (`gqa.eval.diagnose`);
  `speed`: for every batch and context seconds of `prefill` and of a `decode` step, and what bounds them
  (`gqa.eval.speed.measure`); what was not asked for is empty or null;
  `label`, `path`, `fingerprint`, `model_type`, `attention`, `num_heads`, `num_kv_heads`, `parameters`, `weight_bytes`,
  `stored_dtype`, `dtype` (what it was computed in), `scoring_seconds`.
  A number that is infinite or unknown is null.
"""

import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gqa.convert.data import hub_names
from gqa.convert.directory import write_atomically
from gqa.convert.errors import UserError
from gqa.convert.precision import dtype_name
from gqa.convert.provenance import command_line, versions
from gqa.eval.document import FORMAT, Document
from gqa.eval.machine import machine
from gqa.eval.options import EvalOptions
from gqa.eval.processes import Processes
from gqa.eval.row import Result, Row, build_rows
from gqa.eval.speed.words import speed_words
from gqa.eval.subject import Subject
from gqa.eval.written import write_files


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, on what, and how."""

    rows: tuple[Row, ...]
    options: EvalOptions
    machine: dict[str, Any]
    versions: dict[str, str]
    command: list[str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """The object of report.json."""
        return {
            "format": FORMAT,
            "created": self.created,
            "command": self.command,
            "versions": self.versions,
            "machine": self.machine,
            "options": _as_json(asdict(self.options)),
            "hub_data": hub_names([self.options.data]),
            "method": self.rows[0].subject.material.sentences(self.options),
            "notes": self.notes(),
            "speed": self.speed(),
            "checkpoints": [_without_infinity(_as_json(row.to_dict())) for row in self.rows],
        }

    def speed(self) -> dict[str, Any] | None:
        """How speed was measured, and what the times say."""
        measured = [(row.label, row.result.speed) for row in self.rows if row.result.speed is not None]
        options = self.options.speed
        if not measured or options is None:
            return None
        _, first = measured[0]
        return {
            "bandwidth_bytes_per_second": first.bandwidth,
            "attention": first.attention,
            "dtype": first.dtype,
            "compiled": first.compiled,
            "cache": "static",
            "repeats": options.repeats,
            "steps": options.steps,
            "words": speed_words(measured),
        }

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def document(self) -> Document:
        """The same, typed: what it is shown from."""
        return Document.model_validate(self.to_dict())

    def notes(self) -> list[str]:
        """What keeps the rows from being compared at a glance; empty when nothing does."""
        first, notes = self.rows[0], []
        for row in self.rows:
            cache = row.result.kv_cache
            if row.nll_above_first is None:
                notes.append(
                    f"{row.label} splits the text into other tokens than {first.label}: compare bits per byte, not "
                    f"perplexity ({row.sample.num_bytes:,} and {first.sample.num_bytes:,} bytes were scored)."
                )
            elif self.options.divergence and row is not first and row.divergence is None:
                notes.append(
                    f"{row.label} has a vocabulary of {row.subject.config.vocab_size:,} and {first.label} one of "
                    f"{first.subject.config.vocab_size:,} (padding, perhaps): there is no divergence between the two."
                )
            counted, first_counted = (dtype_name(each.result.kv_cache.dtype) for each in (row, first))
            if counted != first_counted:
                notes.append(
                    f"{row.label} is in {counted}, {first.label} in {first_counted}: KV bytes and sizes differ for "
                    "that alone (--dtype sets one for all KV bytes)."
                )
            notes += [row.result.precision.note] if row.result.precision.note else []
            notes += row.subject.material.notes(row.label)
            for part in cache.parts:
                if not part.agree:
                    promised = "nothing known" if part.formula_bytes is None else f"{part.formula_bytes:,} bytes"
                    notes.append(
                        f"{row.label}: for {part.context} tokens the config promises {promised} of KV cache, its class "
                        f"keeps {part.measured_bytes:,} bytes."
                    )
        return notes


def build_report(subjects: list[Subject], results: list[Result], options: EvalOptions, processes: Processes) -> Report:
    """The report of what came out, with the machine and the versions of this process."""
    return Report(
        rows=build_rows(subjects, results),
        options=options,
        machine=machine(processes.device, processes.count),
        versions=versions(),
        command=command_line(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_report(report: Report, output: Path, *, overwrite: bool = False) -> None:
    """Make the directory `output` with all that shows the report; it appears whole or not at all.

    Measuring may have taken hours: should showing it fail, the numbers alone are kept, as OUTPUT.rescued.json.
    """
    text = report.to_json()
    try:
        write_files(report.document(), text, output, overwrite=overwrite)
    except UserError:  # of the disk, which would not take them either
        raise
    except Exception as error:
        kept = output.with_name(f"{output.name}.rescued.json")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, text)
        error.add_note(f"What was measured is kept in {kept}; `gqa-eval compare {kept} -o DIR` draws it.")
        raise


def _as_json(value: Any) -> Any:
    """The same as JSON reads it back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinity(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
