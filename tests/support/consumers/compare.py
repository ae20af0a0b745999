"""Is what an engine says what the reference says? Pure functions on answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from consumers.answering import Answer

Verdict = Literal["agrees", "not run", "can't read", "differs"]
"""From the best to the worst: an engine that reads a checkpoint wrongly is worse than one that says it can't."""

VERDICTS: tuple[Verdict, ...] = ("agrees", "not run", "can't read", "differs")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix: an engine and a checkpoint."""

    engine: str
    checkpoint: str
    verdict: Verdict
    version: str = ""
    difference: float | None = None
    """The largest of any logit, over all steps of all prompts."""

    tolerance: float | None = None
    reason: str = ""


def compared(
    engine: str, checkpoint: str, version: str, said: Any, reference: Sequence[Answer], tolerance: float
) -> Row:
    """The row of an engine's answers for a checkpoint, or of the error that it gave in their place."""
    row = {"engine": engine, "checkpoint": checkpoint, "version": version, "tolerance": tolerance}
    if isinstance(said, Mapping):
        return Row(verdict="can't read", reason=str(said["error"]), **row)
    differences = []
    for answer, right in zip((Answer(**answer) for answer in said), reference, strict=True):
        if answer.tokens != right.tokens:
            return Row(verdict="differs", reason=f"tokens from {parting(answer.tokens, right.tokens)} on", **row)
        parted = parting(answer.continuation, right.continuation)
        if parted < len(right.continuation) and not tied(right, parted, tolerance):
            return Row(verdict="differs", reason=f"continuation from {parted} on", **row)
        differences.append(largest_difference(answer, right, steps=parted + 1))
    difference = float(np.max(differences))  # Python's own max loses a NaN
    if not difference <= tolerance:  # nor is a NaN
        return Row(verdict="differs", reason="logits", difference=difference, **row)
    return Row(verdict="agrees", difference=difference, **row)


def tied(reference: Answer, step: int, tolerance: float) -> bool:
    """Are two tokens so close that scores within the tolerance may choose either?"""
    return margins(reference)[step] <= 2 * tolerance


def parting(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two lists differ."""
    same = (left == right for left, right in zip(one, other, strict=False))
    return next((index for index, equal in enumerate(same) if not equal), min(len(one), len(other)))


def largest_difference(answer: Answer, reference: Answer, steps: int | None = None) -> float:
    """Of any score at the first `steps` steps; of log-probabilities where the engine gives those in place of logits."""
    scores, wanted = np.array(answer.scores)[:steps], np.array(reference.scores)[:steps]  # [steps, vocab]
    if scores.shape != wanted.shape:
        return math.inf
    if answer.normalised:
        wanted = wanted - np.logaddexp.reduce(wanted, axis=-1, keepdims=True)
    return float(np.abs(scores - wanted).max())


def margins(answer: Answer) -> np.ndarray:
    """Between the two likeliest tokens at every step: how far logits would have to move to change a continuation."""
    best = np.sort(np.array(answer.scores), axis=-1)[:, -2:]  # [steps, 2]
    return best[:, 1] - best[:, 0]


def worse(now: Row, before: Verdict | None) -> bool:
    """Has a row become worse than the one that is written down? What is not written down must agree, or not run."""
    if now.verdict == "not run":
        return False
    return VERDICTS.index(now.verdict) > VERDICTS.index(before if before and before != "not run" else "agrees")
