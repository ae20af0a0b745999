"""`python -m gqa.convert.push`."""

from gqa.convert.push.cli import main

main()
