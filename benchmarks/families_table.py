"""Writes the tables of families into docs/families.md and README.md, between their markers, from the families' files.

python benchmarks/families_table.py            # brings them up to date
python benchmarks/families_table.py --check    # says with exit code 1 that they are not
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.listing import COLUMNS, listed, refusals

ROOT = Path(__file__).parent.parent


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False) -> None:
    """Write the tables, or check them."""
    refused = ((", ".join(model_types), reason) for reason, model_types in refusals())
    tables = {
        "families": _markdown(COLUMNS, (entry.row for entry in listed())),
        "multimodal": ", ".join(sorted(WRAPPERS)),
        "refused": _markdown(("refused", "because"), refused),
    }
    for name, parts in {"docs/families.md": tables.keys(), "README.md": ["families"]}.items():
        old = new = (ROOT / name).read_text(encoding="utf-8")
        for part in parts:
            new = _between(new, part, tables[part])
        if check and new != old:
            sys.exit(f"the tables in {name} are not those of the families: run python benchmarks/families_table.py")
        if not check:
            (ROOT / name).write_text(new, encoding="utf-8")


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers called `name`."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{start}.*?{end}", re.DOTALL)
    assert pattern.search(text), f"the page has no markers {start} and {end}"
    return pattern.sub(lambda _: f"{start}\n\n{content}\n\n{end}", text)


if __name__ == "__main__":
    typer.run(main)
