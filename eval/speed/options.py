"""How decoding speed is to be measured."""

from dataclasses import dataclass

from gqa.convert.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Everything that decides which times are measured; the same for every checkpoint."""

    batch: tuple[int, ...] = (1,)
    """Sequences decoded at once; every number with every context."""

    context: tuple[int, ...] = (512,)
    """Tokens of every sequence that are in the cache when decoding begins."""

    repeats: int = 5
    """How often each is measured, after a warm-up; the median is reported, with the least and the most."""

    steps: int = 16
    """Tokens that each sequence is decoded by in every repeat; the first of them sees `context` tokens."""

    attention: str = "sdpa"
    """One of transformers' implementations: sdpa, eager, flash_attention_2, ..."""

    compile: bool | None = None
    """Whether decoding steps are compiled. None: on CUDA, where launching kernels takes longer than most of them. On a
    CPU it may halve the time of small models, and takes half a minute and more for every batch and context."""

    memory_gb: float | None = None
    """The memory that the largest batch is computed for, in 10^9 bytes. None: all that the device has."""

    def __post_init__(self) -> None:
        for name in ("batch", "context"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise UserError(f"speed {name} is {list(values)}; write whole numbers from 1 up, as in 1,8")
        for name in ("repeats", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"speed {name} is {getattr(self, name)}; it must be at least 1")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise UserError(f"speed memory_gb is {self.memory_gb}; it must be above 0")
