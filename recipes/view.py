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
    """Perplexity, KV cache and size of every checkpoint, a row each, drawn as Markdown draws it."""
    from rich.box import MARKDOWN
    from rich.table import Table

    table = Table(box=MARKDOWN)
    table.add_column("checkpoint", no_wrap=True)
    for heading in ("KV heads", "perplexity", "ratio", "KV bytes/token", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["checkpoints"]:
        table.add_row(
            row["label"],
            "MLA" if row.get("attention") == "latent" else str(row["num_kv_heads"]),
            _number(row["perplexity"]),
            _number(row["perplexity_ratio"]),
            f"{row['kv_cache']['bytes_per_token']:,.0f}",
            f"{row['weight_bytes'] / 1e6:,.2f} MB",
        )
    return table


def _number(value: float | None) -> str:
    """Two decimals; infinity and what can't be compared are null in a report."""
    return "-" if value is None else f"{value:,.2f}"
