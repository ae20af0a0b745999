"""docs/consumers.md: what the run found, as tables; and the verdicts of an earlier run, read back from there."""

import re
from collections.abc import Iterable, Mapping
from datetime import date

from consumers.catalogue import ENGINES
from consumers.compare import VERDICTS, Row, Verdict
from consumers.read import EXPECTED
from consumers.reference import PROMPTS, STEPS, Reference

TITLE = """\
# What reads our checkpoints

Written by `make test-consumers`, last on {today}: every engine reads, with its own code, what `gqa-convert` wrote,
and is compared with transformers {version} on {prompts} prompts and greedy continuations of {steps} tokens.

"agrees" means: the same tokens from its own tokenizer, the same continuation, and no logit further off than the
tolerance, all in float32. llama.cpp gives log-probabilities, which are compared instead; CTranslate2 has no tokenizer
and is given transformers' tokens as strings.
"""

CONTROL = """
## What the comparison can see

The checkpoints are trained, so continuations mean something: "margin" is the median distance of the two likeliest
tokens. Where it is below twice the tolerance, and only there, a continuation may take the other one. Their rotary bases
are no defaults, so an engine that loses them is seen: "base lost" is how far a logit after a prompt moves when the base
becomes 10000.
"""

READ = """
## Read, not run

vLLM and SGLang need a GPU. Their source was read instead, and the tests check that every setting which it takes from
config.json stands in ours.
"""


def rendered(rows: Iterable[Row], references: Mapping[str, Reference], version: str, today: date) -> str:
    """The whole page."""
    rows = list(rows)
    notes = [f"- {name}: {note}" for name, note in _notes(rows)]
    return "\n".join(
        [
            TITLE.format(today=today, version=version, prompts=len(PROMPTS), steps=STEPS),
            *table(["engine", "version", "checkpoint", "result", "largest difference", "tolerance"], map(_cells, rows)),
            *(["", *notes] if notes else []),
            CONTROL,
            *table(
                ["checkpoint", "margin", "rotary base", "base lost"], (_control(*item) for item in references.items())
            ),
            READ,
            *table(
                ["engine", "model type", "KV heads"], ([line.engine, line.model_type, line.note] for line in EXPECTED)
            ),
            "",
        ]
    )


def verdicts(page: str) -> dict[tuple[str, str], Verdict]:
    """What a page says of each engine and checkpoint."""
    found: dict[tuple[str, str], Verdict] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        said = [known for known in VERDICTS if len(cells) == 6 and cells[3].startswith(known)]
        if said:
            found[cells[0], cells[2]] = said[0]
    return found


def table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    """A table of Markdown, as lines."""
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]]


def _cells(row: Row) -> list[str]:
    result = f"{row.verdict}: {_safe(row.reason)}" if row.reason else row.verdict
    difference = "" if row.difference is None else f"{row.difference:.0e}"
    tolerance = "" if row.tolerance is None or row.verdict in ("not run", "can't read") else f"{row.tolerance:.0e}"
    return [row.engine, row.version, row.checkpoint, result, difference, tolerance]


def _control(name: str, reference: Reference) -> list[str]:
    return [name, f"{reference.margin:.2f}", f"{reference.rotary_base:g}", f"{reference.lost_base:.2f}"]


def _notes(rows: list[Row]) -> Iterable[tuple[str, str]]:
    shown = {row.engine for row in rows}
    return ((engine.name, engine.note) for engine in ENGINES if engine.note and engine.name in shown)


def _safe(reason: str) -> str:
    """One cell's worth of an engine's message: no table characters, no paths of this machine, not too long."""
    plain = re.sub(r"(/[\w.+-]+)+/", "", reason).replace("|", "/")
    return plain if len(plain) <= 200 else f"{plain[:199]}…"
