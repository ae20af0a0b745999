"""Writes the tables of families into docs/families.md, between its markers, from what the families' files say.

python benchmarks/families_table.py            # brings it up to date
python benchmarks/families_table.py --check    # says with exit code 1 that it is not
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.listing import COLUMNS, listed, refusals

PAGE = Path(__file__).parent.parent / "docs" / "families.md"


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False) -> None:
    """Write the tables, or check them."""
    old = PAGE.read_text(encoding="utf-8")
    new = _between(old, "families", _markdown(COLUMNS, (entry.row for entry in listed())))
    new = _between(new, "multimodal", ", ".join(sorted(WRAPPERS)))
    rows = ((", ".join(model_types), reason) for reason, model_types in refusals())
    new = _between(new, "refused", _markdown(("refused", "because"), rows))
    if check and new != old:
        sys.exit(
            "the tables in docs/families.md are not those of the families: run python benchmarks/families_table.py"
        )
    if not check:
        PAGE.write_text(new, encoding="utf-8")


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
