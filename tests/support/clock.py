"""What a metrics line says of the machine and of the clock, which no two runs have in common."""

from typing import Any

OF_THE_MACHINE = {"tokens_per_second", "mfu", "memory_bytes", "seconds_left"}


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """The line without these."""
    return {key: value for key, value in line.items() if key not in OF_THE_MACHINE}
