"""`python -m gqa.eval` is `gqa-eval`; a multi-process launcher needs this form."""

from gqa.eval.cli import main

if __name__ == "__main__":
    main()
