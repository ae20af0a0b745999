"""Is a value found again by its key, far back in the text? Recall at growing length, with nothing to download.

Eight pairs, `key = value`, stand at even distances in a stretch of the data; then one of the keys is asked for, every
place in turn. Nothing has to be generated: the eight values are scored by their likelihoods as continuations, and the
right one has to be the likeliest, which by guessing it is once in eight. It measures whether attention still carries a
token over that distance; not whether the model understands what it reads. Words are drawn anew for every sample, so
none is right by itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gqa.convert.errors import UserError
from gqa.eval.cache import cache_argument
from gqa.eval.halves import Halves
from gqa.eval.teacher import IGNORED, padded
from gqa.eval.text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Say = Callable[[str, int, int], None]

PAIRS = 8
SAMPLES = 64
_WORDS = """
    apple river stone cloud tiger piano lemon castle garden mirror winter bridge rocket candle forest
    silver dragon pepper window island button carpet falcon hammer jacket kitten ladder magnet needle
    orange pencil rabbit saddle temple violin walnut yellow zebra anchor basket copper desert engine
    flower guitar harbor jungle kettle
""".split()  # noqa: SIM905 - a line for each word says no more


@dataclass(frozen=True, kw_only=True)
class Recall:
    """At one length."""

    length: int
    """tokens of the whole, the value's included"""
    accuracy: float
    accuracy_standard_error: float
    choice_nll: float
    """the mean of -ln of the right value's share of the eight likelihoods; ln 8 = 2.08 by guessing"""
    samples: int
    chance: float = 1 / PAIRS

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self)


class _Pairs(NamedTuple):
    """What is put into the text of a sample, in tokens, and what it takes with the question and its answer."""

    keys: list[list[int]]
    values: list[list[int]]
    right: int
    """Whose value is asked for."""
    taken: int


@dataclass(frozen=True, kw_only=True)
class _Sample:
    prompt: list[int]
    values: list[list[int]]
    right: int


def check_recall(tokenizer: "PreTrainedTokenizerBase", text: TokenText, lengths: Sequence[int]) -> None:
    """Refuse lengths that recall can't be measured at.

    Raises:
        UserError: one has no room for the pairs, or the data is shorter than it.
    """
    for length in lengths:
        enough = length
        while (most := max(_all_taken(tokenizer, text, enough))) > enough:  # other lengths have other words
            enough = most
        if enough > length:
            raise UserError(
                f"recall at {length} tokens has no room for its {PAIRS} pairs, which take {enough}; take more"
            )
        if length - min(_all_taken(tokenizer, text, length)) > len(text.ids):
            raise UserError(
                f"recall at {length} tokens needs as much text, and the data has {len(text.ids)}; take less"
            )


def recall_at(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: TokenText,
    lengths: Sequence[int],
    *,
    samples: int = SAMPLES,
    progress: Say = lambda *_: None,
) -> tuple[Recall, ...]:
    """Recall at each of `lengths`, in tokens, with `text` to fill it up."""
    halves, found = Halves(model), []
    for length in lengths:
        likelihoods = np.zeros((samples, PAIRS))
        for number in range(samples):
            progress(f"recall at {length} tokens", number, samples)
            sample = _sample(tokenizer, text, length, number)
            order = [sample.right, *(index for index in range(PAIRS) if index != sample.right)]
            likelihoods[number] = _likelihoods(halves, sample)[order]
        found.append(_summed_up(length, likelihoods))
    return tuple(found)


def _summed_up(length: int, likelihoods: np.ndarray) -> Recall:
    """[samples, values] log-likelihoods, the right value's first."""
    samples = len(likelihoods)
    right = float((likelihoods[:, 0] > likelihoods[:, 1:].max(axis=1)).mean())
    shares = likelihoods - np.logaddexp.reduce(likelihoods, axis=1, keepdims=True)
    return Recall(
        length=length,
        accuracy=right,
        accuracy_standard_error=math.sqrt(right * (1 - right) / samples),
        choice_nll=float(-shares[:, 0].mean()),
        samples=samples,
    )


def _sample(tokenizer: "PreTrainedTokenizerBase", text: TokenText, length: int, number: int) -> _Sample:
    """The pairs in a stretch of the data, and a key; the same for every checkpoint with the same tokens."""
    random = np.random.default_rng([number, length])
    pairs = _pairs(tokenizer, text, random, number)
    fill = length - pairs.taken
    start = int(random.integers(0, len(text.ids) - fill + 1))
    stretches = np.array_split(text.ids[start : start + fill], PAIRS)
    prompt = _lead(text)
    for key, value, stretch in zip(pairs.keys, pairs.values, stretches, strict=True):
        prompt += [*key, *value, *stretch.tolist()]
    return _Sample(prompt=prompt + pairs.keys[pairs.right], values=pairs.values, right=pairs.right)


def _pairs(tokenizer: "PreTrainedTokenizerBase", text: TokenText, random: np.random.Generator, number: int) -> _Pairs:
    words = random.permutation(_WORDS)[: 2 * PAIRS]
    keys = [_ids(tokenizer, f"\n{key} =") for key in words[:PAIRS]]
    values = [_ids(tokenizer, f" {value}\n") for value in words[PAIRS:]]
    right = number % PAIRS
    taken = len(_lead(text)) + sum(map(len, keys + values)) + len(keys[right]) + max(map(len, values))
    return _Pairs(keys, values, right, taken)


def _all_taken(tokenizer: "PreTrainedTokenizerBase", text: TokenText, length: int) -> list[int]:
    """The tokens that every sample takes."""
    return [_pairs(tokenizer, text, np.random.default_rng([number, length]), number).taken for number in range(SAMPLES)]


def _lead(text: TokenText) -> list[int]:
    return [] if text.bos is None else [text.bos]


def _likelihoods(halves: Halves, sample: _Sample) -> np.ndarray:
    """Log-likelihoods of the values after the prompt, which goes through the model once: [values]."""
    from transformers import DynamicCache

    cache, device = DynamicCache(config=halves.model.config), halves.model.device
    cached: dict[str, Any] = {cache_argument(halves.model): cache, "use_cache": True}
    rows = torch.from_numpy(padded([np.array(value) for value in sample.values], IGNORED)).to(device)
    with torch.inference_mode():
        prompt = torch.tensor([sample.prompt], device=device)
        hidden = halves.hidden(input_ids=prompt, **cached)[:, -1:]
        hidden = hidden.expand(len(rows), -1, -1)  # [values, 1, hidden_size]
        if rows.shape[1] > 1:
            cache.batch_repeat_interleave(len(rows))
            seen = rows[:, :-1].clamp(min=0)
            hidden = torch.cat([hidden, halves.hidden(input_ids=seen, **cached)], dim=1)
        logits = halves.logits(hidden.flatten(0, 1)).float().log_softmax(-1).unflatten(0, rows.shape)
        given = logits.gather(2, rows.clamp(min=0)[..., None]).squeeze(2)  # [values, tokens]
        return given.masked_fill(rows == IGNORED, 0.0).sum(1).double().cpu().numpy()


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
