"""Windows of token ids drawn from all over a text, however large: one pass over it, and memory for the sample alone."""

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gqa.convert.errors import UserError
from gqa.convert.pretrained import adds_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 32  # sampled for every token wanted: some eight times as much text as is taken
_LONGEST = 1 << 16  # characters; longer documents are cut into passages
_READ_AT_MOST = 1 << 30  # characters
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A document, or a part of one that is too long to be taken whole."""

    document: int
    """the number of its document or, where there is only one, its own"""
    text: str


def draw_windows(
    documents: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    counts: tuple[int, int],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Two sets of disjoint windows that share no document: [counts[0], length] and [counts[1], length] int64.

    Documents from all over the data, of which the first billion characters are read, are tokenised, closed with the
    end-of-text token and joined; windows are drawn from some eight times the text that they take, where there is so
    much. Documents of more than 65,536 characters are cut into passages, which count as documents where there is only
    one. Where the tokenizer puts a BOS token before texts, one stands before every window.

    Raises:
        UserError: there is too little text; the message says how much there is.
    """
    passages = sample_passages(documents, characters=_CHARACTERS * sum(counts) * length, seed=seed)
    sides = _divide(passages, _encode(passages, tokenizer), share=counts[1] / sum(counts))
    lead = torch.tensor([tokenizer.bos_token_id] if adds_bos(tokenizer) else [], dtype=torch.int64)
    held = length - len(lead)
    pools = [side[: len(side) // held * held].view(-1, held) for side in sides]
    if any(len(pool) < count for pool, count in zip(pools, counts, strict=True)):
        tokens, number = sum(map(len, sides)), len({passage.document for passage in passages})
        held_out = f" and {counts[1]} held out from other documents" if counts[1] else ""
        raise UserError(
            f"the calibration text has {tokens:,} tokens in {number:,} documents, too few for {counts[0]} windows of "
            f"{length} tokens{held_out}; name more text, or ask for fewer tokens or shorter sequences"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(pool), generator=generator) for pool in pools]
    drawn = [pool[order[:count]] for pool, order, count in zip(pools, orders, counts, strict=True)]
    train, held_out = (torch.cat([lead.expand(len(rows), -1), rows], dim=1) for rows in drawn)
    return train, held_out


def sample_passages(documents: Iterable[str], *, characters: int, seed: int) -> list[Passage]:
    """Passages of about `characters` characters in all, in random order.

    Every passage of the data is as likely to be among them as any other, and anywhere in the order.
    """
    order = random.Random(seed)
    kept: list[tuple[float, int, Passage]] = []  # a heap: what comes last in the order is on top, and goes first
    taken = read = seen = document = 0
    for document, text in enumerate(documents):
        for start in range(0, len(text), _LONGEST):
            passage = Passage(document=document, text=text[start : start + _LONGEST])
            heapq.heappush(kept, (-order.random(), seen, passage))
            seen += 1
            taken += len(passage.text)
            while taken - len(kept[0][2].text) >= characters:
                taken -= len(heapq.heappop(kept)[2].text)
        read += len(text)
        if read >= _READ_AT_MOST:
            break
    in_order = sorted(kept, key=lambda item: -item[0])
    if document:
        return [passage for _, _, passage in in_order]
    return [replace(passage, document=number) for _, number, passage in in_order]


def _encode(passages: list[Passage], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The token ids of every passage, closed with the end-of-text token where the tokenizer has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded: list[list[int]] = []
    for start in range(0, len(passages), _TEXTS_AT_ONCE):
        texts = [passage.text for passage in passages[start : start + _TEXTS_AT_ONCE]]
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        encoded += [ids + end for ids in found["input_ids"]]
    return encoded


def _divide(passages: list[Passage], encoded: list[list[int]], share: float) -> tuple[Tensor, Tensor]:
    """The passages' tokens joined, in their order: those to keep, and a `share` of all that is held out.

    A document belongs to one side with all of its passages.
    """
    held_out: dict[int, bool] = {}
    joined: dict[bool, list[int]] = {False: [], True: []}
    for passage, ids in zip(passages, encoded, strict=True):
        lacks = len(joined[True]) < share * (len(joined[True]) + len(joined[False]))
        joined[held_out.setdefault(passage.document, lacks)] += ids
    return torch.tensor(joined[False], dtype=torch.int64), torch.tensor(joined[True], dtype=torch.int64)
