"""Span corruption, what T5 was pretrained on (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): text to a source
with holes and a target that fills them.

The law, for a window of L tokens: n = round(0.15 L) of them are noise, in s = round(n / 3) spans (each at least 1, and
n at most L - 1). The n noise tokens are cut into s lengths, and the L - n others into s lengths, each cut one of all
that there are with equal chance, no length being 0. Spans then alternate, the first one kept, the last one noise, so no
two noise spans touch, and one that is alone ends the window. In the source every noise span is one sentinel,
`<extra_id_0>` from the left on; the target is every sentinel followed by its span. Both end in EOS. So their lengths
depend on L alone, L - n + s + 1 and n + s + 1, and windows of one length need no padding. A text that spells a sentinel
is taken to hold one: it can't be told from those put there.

Chance comes from the raw bits of a counter-based generator, which numpy promises not to change: what is drawn for a
window is a function of two numbers, the seed and the window's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gqa.convert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE_DENSITY, MEAN_SPAN = 0.15, 3
NOWHERE = -1
"""The place of a token that is of no place in the window: a sentinel, or EOS."""


_OWN_KEYS = 0x7370616E  # so that what is drawn here is drawn nowhere else from the same seed


class Corrupted(NamedTuple):
    """Windows after corruption. Each row is a window."""

    sources: np.ndarray
    """Token ids. [windows, L - n + s + 1]"""

    targets: np.ndarray
    """Token ids. [windows, n + s + 1]"""

    places: np.ndarray
    """Where in its window each token of the target stands; NOWHERE for sentinels and EOS. [windows, n + s + 1]"""


class Counts(NamedTuple):
    """What becomes of a window of some length."""

    noise: int
    spans: int

    @classmethod
    def of(cls, length: int) -> "Counts":
        """The counts for a window of `length` tokens, which is at least 2."""
        assert length >= 2, length
        noise = min(max(round(NOISE_DENSITY * length), 1), length - 1)
        return cls(noise, min(max(round(noise / MEAN_SPAN), 1), length - noise))


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """The corruption for one tokenizer."""

    sentinels: np.ndarray
    """Ids of `<extra_id_0>`, `<extra_id_1>`, ... [sentinels]"""

    eos: int

    def __call__(self, tokens: np.ndarray, seed: int, numbers: Sequence[int] | np.ndarray) -> Corrupted:
        """Corrupt windows of one length.

        Args:
            tokens: the windows' token ids. [windows, L]
            seed: what all of them share.
            numbers: each window's own number. [windows]
        """
        noise = noise_mask(tokens.shape[1], seed, numbers)
        opens = noise & ~np.roll(noise, 1, axis=1)  # the first token is never noise, so nothing comes round
        sentinels = self.sentinels[np.cumsum(opens, axis=1) - 1]  # of the span that is open, or was last
        places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        sources = _kept(np.where(opens, sentinels, tokens), ~noise | opens)
        pairs = np.stack([opens, noise], axis=2)  # before every token room for a sentinel  [windows, L, 2]
        targets = _kept(np.stack([sentinels, tokens], axis=2), pairs)
        where = _kept(np.stack([np.full_like(places, NOWHERE), places], axis=2), pairs)
        return Corrupted(_closed(sources, self.eos), _closed(targets, self.eos), _closed(where, NOWHERE))

    def lengths(self, length: int) -> tuple[int, int]:
        """Tokens of the source and of the target that a window of `length` tokens becomes.

        Raises:
            UserError: it has more spans than there are sentinels.
        """
        noise, spans = Counts.of(length)
        if spans > len(self.sentinels):
            raise UserError(
                f"a window of {length} tokens has {spans} spans of noise, but the tokenizer has "
                f"{len(self.sentinels)} sentinels (<extra_id_0> and so on); choose shorter sequences"
            )
        return length - noise + spans + 1, noise + spans + 1

    def window(self, source_length: int) -> int:
        """The most tokens that a window may have for its source to have at most `source_length`.

        Raises:
            UserError: no window is so short, or it has more spans than there are sentinels.
        """
        if source_length < 3:
            raise UserError(f"a source of {source_length} tokens has no room for a token, a sentinel and EOS; allow 3")
        length = 2
        while length + 1 - (counts := Counts.of(length + 1)).noise + counts.spans + 1 <= source_length:
            length += 1
        self.lengths(length)
        return length


def span_corruption(tokenizer: "PreTrainedTokenizerBase", checkpoint: object) -> SpanCorruption:
    """The corruption for the sentinels of a tokenizer.

    Raises:
        UserError: it has none, or no EOS: the model was not pretrained so.
    """
    vocabulary = tokenizer.get_vocab()
    sentinels: list[int] = []
    while (name := f"<extra_id_{len(sentinels)}>") in vocabulary:
        sentinels.append(vocabulary[name])
    if not sentinels or tokenizer.eos_token_id is None:
        missing = "sentinels (<extra_id_0> and so on)" if not sentinels else "end-of-text token"
        raise UserError(
            f"the tokenizer of {checkpoint} has no {missing}, which the span corruption of plain text needs; give data "
            "of sources and targets, a row each, with --source-column and --target-column"
        )
    return SpanCorruption(sentinels=np.array(sentinels, np.int64), eos=int(tokenizer.eos_token_id))


def noise_mask(length: int, seed: int, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which tokens of each window are noise: bool [windows, length]."""
    noise, spans = Counts.of(length)
    bits = np.stack([_bits(seed, int(number), length) for number in numbers])  # [windows, length]
    noise_lengths = _segments(bits[:, :noise], spans)
    kept_lengths = _segments(bits[:, noise:], spans)
    ends = np.stack([kept_lengths, noise_lengths], axis=2).reshape(len(bits), -1).cumsum(axis=1)  # [windows, 2 spans]
    crossed = np.zeros((len(bits), length + 1), np.int64)
    np.put_along_axis(crossed, ends, 1, axis=1)
    return crossed.cumsum(axis=1)[:, :length] % 2 == 1


def _bits(seed: int, number: int, count: int) -> np.ndarray:
    key = np.array([seed ^ _OWN_KEYS, number], np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def _segments(bits: np.ndarray, count: int) -> np.ndarray:
    """Lengths of `count` segments, each at least 1, that the items behind `bits` [windows, items] are cut into."""
    items = bits.shape[1]
    cuts = np.sort(np.argsort(bits[:, 1:], axis=1, kind="stable")[:, : count - 1], axis=1) + 1
    edges = np.pad(cuts, ((0, 0), (1, 0)))
    return np.diff(edges, axis=1, append=np.full((len(bits), 1), items))


def _kept(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The values under the mask, as many in every row: [windows, kept]."""
    return values[mask].reshape(len(values), -1)


def _closed(rows: np.ndarray, end: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=end)
