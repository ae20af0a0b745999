"""What the first model made of the material, kept so that every later one can be compared with all of it.

Logits of a text are as many as its tokens times the vocabulary: far too many to keep. Hidden states are few, and the
model's head makes the same logits of them again, to the last bit. They go to a temporary file without a name, which
the system takes back whatever happens; of the model only the head stays in memory.
"""

import tempfile

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.eval.halves import Halves


class FirstModel:
    """Hidden states in the order in which they were added, and the head that belongs to them."""

    def __init__(self, halves: Halves) -> None:
        self.halves = halves
        """What makes logits of hidden states."""
        self._file = tempfile.TemporaryFile(prefix="gqa-eval-")  # noqa: SIM115 - open for as long as this object lives
        self._shapes: list[tuple[int, int]] = []
        self._dtype: torch.dtype | None = None
        self._read = 0

    def add(self, hidden: Tensor) -> None:
        """Keep a batch's. [scored, hidden_size].

        Raises:
            UserError: the disk is full.
        """
        self._shapes.append((hidden.shape[0], hidden.shape[1]))
        self._dtype = hidden.dtype
        try:
            self._file.write(hidden.cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"no room for the first checkpoint's hidden states in {tempfile.gettempdir()} ({error.strerror}); set "
                "TMPDIR to a roomier folder, or leave the divergence out with --no-divergence"
            ) from error

    def finish(self) -> None:
        """Let go of all of the model but its head."""
        self.halves.drop_trunk()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def rewind(self) -> None:
        """Begin again with the first batch."""
        self._file.seek(0)
        self._read = 0

    def next(self) -> Tensor:
        """The next batch's, in host memory. [scored, hidden_size]."""
        assert self._dtype is not None
        shape = self._shapes[self._read]
        self._read += 1
        data = bytearray(self._file.read(shape[0] * shape[1] * self._dtype.itemsize))
        return torch.frombuffer(data, dtype=self._dtype).view(shape)
