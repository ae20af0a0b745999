"""One checkpoint's part of an evaluation: load it, score the data, and do what else is asked while it is in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gqa.convert.errors import UserError
from gqa.convert.precision import dtype_name
from gqa.convert.pretrained import load_tokenizer
from gqa.convert.provenance import fingerprint
from gqa.convert.tensors import weight_files
from gqa.eval.cache import cache_size
from gqa.eval.continuations import continue_prompts
from gqa.eval.diagnose import Layer, Recorded, compare, record
from gqa.eval.first import FirstModel
from gqa.eval.halves import Halves
from gqa.eval.material import Material
from gqa.eval.model import load_model
from gqa.eval.options import EvalOptions
from gqa.eval.precision import choose_precision
from gqa.eval.processes import Processes
from gqa.eval.recall import recall_at
from gqa.eval.room import Room
from gqa.eval.row import Result
from gqa.eval.scoring import Scores, score
from gqa.eval.speed.measure import measure_speed
from gqa.eval.stream import StreamMaterial
from gqa.eval.subject import Subject
from gqa.eval.tasks import run_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

_TOKENS = {"cpu": 1024, "other": 16384}  # of a forward pass


@dataclass(kw_only=True)
class Beside:
    """What is kept of the first checkpoint, so that others can be compared with it when it is gone."""

    subject: Subject
    hidden: FirstModel | None = None
    attentions: Recorded | None = None

    def close(self) -> None:
        """Give back what it takes on disk."""
        if self.hidden is not None:
            self.hidden.close()

    def comparable(self, subject: Subject) -> bool:
        """Whether distributions over tokens mean the same: one tokenizer, one size of the vocabulary."""
        same = subject.material is self.subject.material
        return same and subject.config.vocab_size == self.subject.config.vocab_size


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What all checkpoints are measured with."""

    options: EvalOptions
    processes: Processes
    beside: Beside
    others: list[Subject] = field(default_factory=list)
    """every checkpoint but the first"""
    progress: Progress

    @property
    def room(self) -> Room:
        """The size of batches, the same for every checkpoint."""
        device = "cpu" if self.processes.device.type == "cpu" else "other"
        return Room(tokens=_TOKENS[device], rows=self.options.batch_size)

    def __call__(self, subject: Subject) -> Result:
        """Load one checkpoint and measure it.

        Raises:
            UserError: it can't be loaded, its numbers aren't finite, or memory runs out.
        """
        self.progress(f"{subject.label}: loading", 0, 0)
        precision = choose_precision(subject, self.options.dtype, self.processes.device)
        own = precision.computed == precision.stored
        model = load_model(subject.path, dtype="auto" if own else precision.computed, device=self.processes.device)
        start = time.perf_counter()
        scores = self._score(model, subject, subject.material)
        seconds = time.perf_counter() - start
        context = min(self.options.window, getattr(subject.config, "max_position_embeddings", self.options.window))
        result = Result(
            scores=scores,
            seconds=seconds,
            dtype=dtype_name(model.dtype),
            precision=precision,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            weight_bytes=sum(file.stat().st_size for file in weight_files(subject.path)),
            fingerprint=fingerprint(subject.path),
            kv_cache=cache_size(model, subject.config, context, precision.counted),
            windows={self.options.window: (subject.material, scores.nlls), **self._further(model, subject)},
            **self._more(model, subject),
        )
        if self.beside.hidden is not None and subject is self.beside.subject:
            self.beside.hidden.finish()  # the last that is done with the model: it loses its trunk
        return result

    def _score(self, model: "PreTrainedModel", subject: Subject, material: Material) -> Scores:
        """Score this process's share of the data, and put it together with the others'."""
        mine = material.batches(self.room)[self.processes.rank :: self.processes.count]
        total, done = sum(len(batch) for batch in mine), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(f"{subject.label}: scoring", done, total)

        advance(0)
        halves = Halves(model)
        keep, first = self._comparison(halves, subject, material)
        try:
            scores = score(halves, material, mine, keep=keep, first=first, progress=advance)
        except torch.OutOfMemoryError as error:
            rows = max(len(batch) for batch in mine)
            raise UserError(f"out of memory at batch size {rows}; choose a smaller --batch-size") from error
        scores = scores.map(self.processes.sum)
        wrong = int((~np.isfinite(scores.nlls)).sum())
        if wrong:
            raise UserError(
                f"{subject.path} gives no finite probability to {wrong} tokens in {model.dtype}: "
                "its weights are broken, or the precision is too small; try --dtype float32"
            )
        return scores

    def _comparison(
        self, halves: Halves, subject: Subject, material: Material
    ) -> tuple[FirstModel | None, FirstModel | None]:
        """Where the first checkpoint's hidden states go, and where those are that another one is compared with."""
        beside = self.beside
        if not self.options.divergence or material is not beside.subject.material:
            return None, None
        if subject is beside.subject:
            if any(beside.comparable(other) for other in self.others):
                beside.hidden = FirstModel(halves)
            return beside.hidden, None
        if beside.hidden is None or not beside.comparable(subject):
            return None, None
        beside.hidden.rewind()
        return None, beside.hidden

    def _further(self, model: "PreTrainedModel", subject: Subject) -> dict[int, tuple[Material, np.ndarray]]:
        """What the other windows give."""
        found: dict[int, tuple[Material, np.ndarray]] = {}
        for window in self.options.further_windows:
            assert isinstance(subject.material, StreamMaterial)
            material = subject.material.at_window(window, self.options.stride)
            found[window] = (material, self._score(model, subject, material).nlls)
        return found

    def _more(self, model: "PreTrainedModel", subject: Subject) -> dict[str, Any]:
        """What else is asked for, by the names of `Result`."""
        options, found = self.options, {}
        if not options.alone:
            return found

        def say(what: str, done: int, total: int) -> None:
            self.progress(f"{subject.label}: {what}", done, total)

        tokenizer = load_tokenizer(subject.path)
        if options.recall:
            assert isinstance(subject.material, StreamMaterial)
            found["recall"] = recall_at(model, tokenizer, subject.material.text, options.recall, progress=say)
        if options.prompts:
            found["continuations"] = continue_prompts(model, tokenizer, options.prompts, options.new_tokens, say)
        if options.tasks:
            found["tasks"] = run_tasks(model, tokenizer, options, say)
        if options.speed is not None:
            found["speed"] = measure_speed(model, options.speed, progress=say)
        if options.diagnose:
            found["layers"] = self._layers(model, subject, say)
        return found

    def _layers(self, model: "PreTrainedModel", subject: Subject, say: Progress) -> tuple[Layer, ...]:
        """Every attention beside the first checkpoint's; none where the text is split into other tokens."""
        material, beside = subject.material, self.beside
        assert isinstance(material, StreamMaterial)
        if subject is beside.subject:
            beside.attentions = record(model, material, progress=say)
        if beside.attentions is None or material is not beside.subject.material:
            return ()
        return compare(model, material, beside.attentions, progress=say)
