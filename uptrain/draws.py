"""An offline teacher: tokens drawn from its distributions, on disk, in the order in which a run trains on windows.

A store is a folder beside the tokens, named by what decides its content (the tokens and how they are cut, shuffled
and mixed; the teacher, its temperature and arithmetic; how many draws), with

- `drawn`: token ids [windows, length, draws], of the smallest type that holds the vocabulary;
- `entropy`: float32 [windows, length], of the distributions drawn from, in nats: so the loss is the divergence itself;
- `draws.json`: these numbers.

Window n is sample n of the run, whatever its batch size, so that the teacher has seen exactly what the model will see.
Draws with replacement, every one of the same weight, estimate forward KL without bias (arXiv 2503.16870), which the
likeliest tokens alone would not: they take the tail for impossible.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gqa.convert.directory import check_space, disk_errors
from gqa.convert.errors import UserError
from gqa.uptrain.batches import Batch, Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.mixture import MixedSampler, shares_of_block
from gqa.uptrain.model import device_of_run, teacher_type
from gqa.uptrain.partial import flush, locked, note, noted, reopened, unfinished

_FORMAT = 1
_STEPS_BETWEEN_NOTES = 64


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What decides a store's content."""

    tokens: str
    """Key of the token store."""

    sequence_length: int
    seed: int
    teacher: str
    """Its fingerprint."""

    arithmetic: str
    """That the teacher computes in."""

    temperature: float
    draws: int
    shares: tuple[int, ...] = ()
    """Of a mixture: how many windows of a block each text has."""

    @property
    def key(self) -> str:
        """The name of the store's folder."""
        facts = asdict(self)
        if not self.shares:
            del facts["shares"]  # of one text nothing is said
        return f"teacher-{hashlib.sha256(repr((_FORMAT, facts)).encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class DrawStore:
    """Draws on disk."""

    drawn: np.ndarray
    """Memory-mapped. [windows, length, draws]"""

    entropy: np.ndarray
    """[windows, length]"""

    vocabulary: int
    """How many tokens the teacher tells apart."""

    def __len__(self) -> int:
        return len(self.drawn)


Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


def drawing_of(config: UptrainConfig, teacher: str, sampler: Sampler) -> Drawing:
    """What the draws of a run are, from the teacher with this fingerprint."""
    return Drawing(
        tokens=sampler.store.key,
        sequence_length=sampler.sequence_length,
        seed=config.seed,
        teacher=teacher,
        arithmetic=str(teacher_type(config.precision, device_of_run())),
        temperature=config.temperature,
        draws=config.teacher_draws,
        shares=tuple(shares_of_block(sampler.weights)) if isinstance(sampler, MixedSampler) else (),
    )


def open_draws(cache: Path, drawing: Drawing, windows: int) -> DrawStore | None:
    """The store, if the cache has it with at least so many windows."""
    folder = cache / drawing.key
    try:
        facts = json.loads((folder / "draws.json").read_text())
    except FileNotFoundError:
        return None
    if facts["windows"] < windows:
        return None
    shape = (facts["windows"], drawing.sequence_length, drawing.draws)
    drawn = np.memmap(folder / "drawn", np.dtype(facts["dtype"]), mode="r", shape=shape)
    entropy = np.memmap(folder / "entropy", np.float32, mode="r", shape=shape[:2])
    return DrawStore(drawn, entropy, facts["vocabulary"])


def write_draws(
    cache: Path,
    drawing: Drawing,
    draw: Draw,
    *,
    windows: int,
    vocabulary: int,
    rows: int,
    progress: Callable[[int], None],
) -> None:
    """Write the store of at least the first `windows` windows, in the place of one that has fewer.

    What a kill has left of it is gone on with: a window's draws depend on its number alone.

    Args:
        cache: the folder of all stores.
        drawing: what it is of.
        draw: draws and entropies of windows i * rows ... (i + 1) * rows - 1, for every i from 0.
        windows: how many there shall be.
        vocabulary: how many tokens the teacher tells apart.
        rows: windows at a time.
        progress: told how many times it has drawn.

    Raises:
        UserError: the disk is full.
    """
    dtype = np.dtype("uint16" if vocabulary <= 1 << 16 else "uint32")
    folder, steps = cache / drawing.key, math.ceil(windows / rows)
    check_space(folder, steps * rows * drawing.sequence_length * (drawing.draws * dtype.itemsize + 4))
    row = drawing.sequence_length * drawing.draws * dtype.itemsize, drawing.sequence_length * 4  # bytes of a window
    with locked(cache / f"{folder.name}.lock"), disk_errors(folder), unfinished(folder) as work:
        done = noted(work).get("windows", 0) // rows
        sizes = [done * rows * size for size in row]
        with reopened(work / "drawn", sizes[0]) as drawn_file, reopened(work / "entropy", sizes[1]) as entropy_file:
            for step in range(done, steps):
                drawn, entropy = draw(step)
                drawn_file.write(drawn.astype(dtype).tobytes())
                entropy_file.write(entropy.astype(np.float32).tobytes())
                progress(step + 1)
                if (step + 1) % _STEPS_BETWEEN_NOTES == 0:
                    note(work, {"windows": (step + 1) * rows}, (drawn_file, entropy_file))
            flush((drawn_file, entropy_file))
        facts = {"windows": steps * rows, "vocabulary": vocabulary, "dtype": dtype.name, **asdict(drawing)}
        (work / "draws.json").write_text(json.dumps(facts, indent=2) + "\n")


def draw_tokens(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn with replacement, and the entropy of what they are drawn from.

    Args:
        logits: [tokens, vocabulary]
        uniform: numbers from [0, 1), a token's draws each. [tokens, draws]
        temperature: the logits are divided by it.

    Returns:
        Token ids int64 [tokens, draws], and entropies in nats [tokens], in float64 where the device has it.
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    log_p = torch.log_softmax(logits.to(exact) / temperature, dim=-1)
    p = log_p.exp()
    reached = p.cumsum(dim=-1)
    drawn = torch.searchsorted(reached, uniform.to(exact) * reached[:, -1:], right=True)
    return drawn.clamp(max=logits.shape[-1] - 1), torch.special.entr(p).sum(dim=-1)


def uniform_numbers(seed: int, window: int, length: int, draws: int) -> np.ndarray:
    """What a window's draws are made from: a function of the seed and its number. [length, draws]."""
    sequence = np.random.SeedSequence((seed, window, _FORMAT))
    return np.random.Generator(np.random.Philox(sequence)).random((length, draws))


@dataclass(frozen=True)
class DrawnBatch(Batch):
    """A batch with what was drawn from the teacher."""

    drawn: torch.Tensor
    """[sequences, length, draws]"""

    entropy: torch.Tensor
    """[sequences, length]"""


@dataclass(frozen=True)
class DrawnSampler:
    """Windows in their order, each with its number. A sample is the number and where its window starts."""

    windows: Sampler
    store: DrawStore

    def samples(self, step: int) -> np.ndarray:
        """Numbers and starts: [batch_size, 2]."""
        return numbered(self.windows, step)

    def heaviest(self, count: int) -> np.ndarray:
        """All windows are of one length."""
        return self.samples(0)[:count]

    def targets(self, samples: np.ndarray) -> int:
        """How many labels the windows hold."""
        return self.windows.targets(samples[:, 1])

    def tokens_before(self, step: int) -> int:
        """Every window is full."""
        return self.windows.tokens_before(step)

    def batch(self, samples: np.ndarray) -> DrawnBatch:
        """The windows, and their draws."""
        numbers, starts = samples.T
        drawn, entropy = self.store.drawn[numbers].astype(np.int64), self.store.entropy[numbers]
        return DrawnBatch(*self.windows.batch(starts), torch.from_numpy(drawn), torch.from_numpy(entropy))


def numbered(windows: Sampler, step: int) -> np.ndarray:
    """The samples of a step with their numbers: [batch_size, 2]."""
    starts = windows.samples(step)
    return np.stack([np.arange(step * len(starts), (step + 1) * len(starts)), starts], axis=1)


def offline(sampler: Sampler, cache: Path, drawing: Drawing, steps: int, vocabulary: int) -> DrawnSampler:
    """The sampler with its draws.

    Raises:
        UserError: nothing was drawn for this run, or too little, or from another vocabulary.
    """
    windows = steps * sampler.batch_size
    store = open_draws(cache, drawing, windows)
    if store is None:
        raise UserError(
            f"the cache {cache} lacks the teacher's draws for the {windows:,} windows of this run; give "
            "gqa-uptrain cache-teacher the same arguments first, or leave offline_teacher out"
        )
    if store.vocabulary != vocabulary:
        raise UserError(
            f"the teacher tells {store.vocabulary} tokens apart, and the model {vocabulary}: the vocabulary must "
            "be the same; name another with --teacher"
        )
    return DrawnSampler(sampler, store)
