"""Seeds: which are allowed, and what each layer draws from."""

from gqa.convert.errors import UserError

LARGEST = 2**32 - 1


def check_seed(seed: int) -> None:
    """Refuse what the generators behind it can't all take.

    Raises:
        UserError: it is negative, or too large.
    """
    if not 0 <= seed <= LARGEST:
        raise UserError(f"seed is {seed}; it must be from 0 to {LARGEST}")


def seed_of_layer(seed: int, layer: int) -> int:
    """A seed for each layer, so that layers draw different numbers and each always the same."""
    return seed * 1_000_003 + layer
