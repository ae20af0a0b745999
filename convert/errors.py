"""The one exception for what a user can mend: bad input, said in a sentence with the fix."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something about the input is wrong. The message says what, where, and what to do."""


class OwnError(UserError):
    """What one of several processes may meet alone, such as a full memory or disk: each that meets it says so."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'llama'?)` when a known word is close to `word`, otherwise an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: Exception) -> str:
    """What a library's error says in its first line, or its type when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
