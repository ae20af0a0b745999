"""How a run's result looks in a terminal: the three checkpoints side by side, read from the report on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


def read_report(directory: Path) -> dict[str, Any]:
    """The object of `directory`'s report.json.

    Raises:
        UserError: it is gone or damaged.
    """
    path = directory / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path} ({error}); run again with --force") from None


def results_table(report: Mapping[str, Any]) -> "Table":
    """Perplexity, KV cache and size of every checkpoint, a row each."""
    from rich.table import Table

    table = Table(title="perplexity on held-out text", title_justify="left")
    table.add_column("checkpoint")
    for heading in ("KV heads", "perplexity", "against before", "KV bytes per token", "parameters", "size"):
        table.add_column(heading, justify="right")
    for row in report["checkpoints"]:
        table.add_row(
            row["label"],
            str(row["num_kv_heads"]),
            _number(row["perplexity"], ".2f"),
            _number(row["perplexity_ratio"], ".2f", "x"),
            f"{row['kv_cache']['bytes_per_token']:,.0f}",
            f"{row['parameters'] / 1e6:,.2f} M",
            f"{row['weight_bytes'] / 1e6:,.2f} MB",
        )
    return table


def _number(value: float | None, form: str, unit: str = "") -> str:
    """`value` so formatted; infinity and what can't be compared are null in a report."""
    return "-" if value is None else f"{value:{form}}{unit}"
