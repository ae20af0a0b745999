"""The model card: a page made from the JSON files that the stages left, and the mark by which it is known again."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from gqa.convert.push.facts import Facts, bullets
from gqa.convert.push.history import how_to_make_it_again, limits, summary, what_was_done
from gqa.convert.push.metadata import metadata, task_of
from gqa.convert.push.results import PICTURE, Results

_TEMPLATE = Path(__file__).with_name("card_template.md")
_MARK = "<!-- Made by gqa-push, which replaces it when it publishes again, unless it was edited. {} -->"
_MARKED = re.compile(
    r"\A(?P<text>.*)^<!-- Made by gqa-push.* (?P<hash>[0-9a-f]{64}) -->\s*\Z", re.DOTALL | re.MULTILINE
)
_HEADINGS = ("checkpoint", "KV heads", "perplexity", "ratio", "bits/byte", "KV bytes/token", "weights")


def make_card(facts: Facts) -> str:
    """The whole card, the mark at its end. The same facts give the same text."""
    sections = {
        "metadata": metadata(facts),
        "title": facts.repo_id.rpartition("/")[2],
        "summary": summary(facts),
        "done": bullets(what_was_done(facts)),
        "results": _results(facts),
        "usage": _usage(facts),
        "again": how_to_make_it_again(facts),
        "limits": bullets(limits(facts)),
    }
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(sections)
    return f"{text}\n{_MARK.format(_hash(text))}\n"


def has_mark(card: str) -> bool:
    """Whether a card was made here, edited since or not."""
    return "<!-- Made by gqa-push" in card


def is_as_made(card: str) -> bool:
    """Whether a card was made here and nobody has changed a letter of it."""
    found = _MARKED.match(card.replace("\r\n", "\n"))
    return found is not None and found["hash"] == _hash(found["text"])


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _results(facts: Facts) -> str:
    if facts.results is None:
        return _without_report(facts)
    rows = [_row(facts.results, measured.name, measured.row) for measured in facts.results.rows]
    rule = ["---", *("---:" for _ in _HEADINGS[1:])]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (_HEADINGS, rule, *rows))
    parts = [table, *_picture(facts.results), _measured_how(facts, facts.results)]
    return "\n\n".join(parts)


def _picture(results: Results) -> list[str]:
    """The report's picture, if it has one, with words for who can't see it."""
    if results.picture is None:
        return []
    said = [
        f"{each.name.strip('*')}: perplexity {_perplexity(each.row)}, {_kv_bytes(each.row)} KV bytes a token"
        for each in results.rows
    ]
    return [f"![Quality against cost. {'; '.join(said)}]({PICTURE})"]


def _without_report(facts: Facts) -> str:
    before, after = facts.heads
    if not facts.merged:
        return "Not measured."
    if facts.latent:
        return "Not measured. `gqa-eval` shows what the smaller cache cost."
    return (
        f"Not measured. KV heads went from {sum(before)} to {sum(after)} over all layers, and the KV cache with them; "
        "`gqa-eval` shows what that cost."
    )


def _row(results: Results, name: str, row: Mapping[str, Any]) -> list[str]:
    ratio, bits = results.ratio(row), row.get("bits_per_byte")
    return [
        name,
        "MLA" if row.get("attention") == "latent" else str(row["num_kv_heads"]),
        _perplexity(row),
        "-" if ratio is None else f"{ratio:.3f}",
        "-" if bits is None else f"{bits:.4f}",
        _kv_bytes(row),
        f"{row['weight_bytes'] / 1e6:,.2f} MB",
    ]


def _perplexity(row: Mapping[str, Any]) -> str:
    return "-" if row["perplexity"] is None else f"{row['perplexity']:.4g}"


def _kv_bytes(row: Mapping[str, Any]) -> str:
    return f"{row['kv_cache']['bytes_per_token']:,.0f}"


def _measured_how(facts: Facts, results: Results) -> str:
    options, sample = results.report["options"], results.own["sample"]
    error = results.own.get("nll_standard_error")
    within = "" if error is None else f", the checkpoint's own within {100 * error:.2g}% (one standard error)"
    stride = options.get("stride") or options["window"]
    return (
        f"Measured by `gqa-eval` on {sample['tokens']:,} tokens of {facts.data_name(options['data'])} (SHA-256 "
        f"{sample['text_sha256'][:16]}), window {options['window']}, stride {stride}, {results.own['dtype']}{within}."
        " The ratio is of perplexities, to the first row's."
    )


def _usage(facts: Facts) -> str:
    task, arguments = task_of(facts.config), f'"{facts.repo_id}"'
    if facts.revision != "main":
        arguments += f', revision="{facts.revision}"'
    trusted = ", trust_remote_code=True" if facts.own_code else ""
    reader = task.reader.removeprefix("Auto").lower()
    lines = [
        "```python",
        f"from transformers import {', '.join(sorted((task.auto_class, task.reader)))}",
        "",
        f"{reader} = {task.reader}.from_pretrained({arguments})",
        f'model = {task.auto_class}.from_pretrained({arguments}, dtype="auto"{trusted})',
        "```",
    ]
    return "\n".join([*lines, "", _what_loads_it(facts)])


def _what_loads_it(facts: Facts) -> str:
    model_type = facts.config["model_type"]
    if facts.own_code:
        return (
            f"No class of transformers holds this {model_type} checkpoint. `{facts.own_code}`, beside the weights, "
            "does, and `trust_remote_code=True` lets transformers run it; where gqa is installed, "
            "`gqa.convert.modeling.register()` does without."
        )
    return f"transformers alone loads it, as any {model_type} checkpoint."
