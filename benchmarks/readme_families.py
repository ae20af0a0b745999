"""Writes the tables of families into README.md and docs/, between their markers, from what the families' files say.

python benchmarks/readme_families.py            # brings them up to date
python benchmarks/readme_families.py --check    # says with exit code 1 that it is not
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
PAGES = [ROOT / "README.md", ROOT / "docs" / "families.md"]


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False) -> None:
    """Write the tables, or check them."""
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = _up_to_date(old)
        if check and new != old:
            sys.exit(f"the tables in {page} are not those of the families: run python benchmarks/readme_families.py")
        if not check:
            page.write_text(new, encoding="utf-8")


def _up_to_date(text: str) -> str:
    text = _between(text, "families", _markdown(COLUMNS, (entry.row for entry in listed())))
    text = _between(text, "multimodal", ", ".join(sorted(WRAPPERS)))
    rows = ((", ".join(model_types), reason) for reason, model_types in refusals())
    return _between(text, "refused", _markdown(("refused", "because"), rows))


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
