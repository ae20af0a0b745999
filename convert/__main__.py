"""`python -m gqa.convert`."""

from gqa.convert.cli import main

main()
