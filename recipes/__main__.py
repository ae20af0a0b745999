"""`python -m gqa.recipes` is `gqa-run`."""

from gqa.recipes.cli import main

main()
