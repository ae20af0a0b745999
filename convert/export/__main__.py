"""`python -m gqa.convert.export` is `gqa-export`."""

from gqa.convert.export.cli import main

main()
