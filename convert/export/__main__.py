"""`python -m gqa.convert.export`."""

from gqa.convert.export.cli import main

main()
