"""One checkpoint's row in a report: what was measured, compared with the report's first checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gqa.convert.precision import dtype_name
from gqa.eval.cache import CacheSize, attention_kind, decoder_config
from gqa.eval.contexts import Context, Windows, by_window
from gqa.eval.continuations import Continuation
from gqa.eval.diagnose import Layer
from gqa.eval.divergence import Divergence, summarise
from gqa.eval.estimate import Mean, Sample, bits_per_byte, perplexity_of, ratio_interval
from gqa.eval.positions import Stretch, by_position
from gqa.eval.precision import Precision
from gqa.eval.recall import Recall
from gqa.eval.scoring import Scores
from gqa.eval.speed.measure import Speed
from gqa.eval.subject import Subject
from gqa.eval.tasks import TaskScores


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out of loading and running one checkpoint."""

    scores: Scores
    seconds: float
    dtype: str
    precision: Precision
    parameters: int
    weight_bytes: int
    fingerprint: str
    kv_cache: CacheSize
    windows: Windows
    """of every window length what was scored, and its NLLs; `scores` are of the first"""

    recall: tuple[Recall, ...] = ()
    tasks: TaskScores = field(default_factory=dict)
    continuations: tuple[Continuation, ...] = ()
    layers: tuple[Layer, ...] = ()
    speed: Speed | None = None

    @property
    def nlls(self) -> np.ndarray:
        """[tokens] negative log-likelihoods in nats; 0 where a token is not scored."""
        return self.scores.nlls


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint, as reported."""

    subject: Subject
    result: Result
    nll: Mean
    nll_above_first: Mean | None
    """The mean difference to the first checkpoint on the same tokens, so its error is that of paired samples.
    None when the two tokenise the data differently, which makes their perplexities incomparable."""

    ratio_interval: tuple[float, float] | None
    """Where the ratio of perplexities to the first checkpoint's is with 95% probability: by bootstrap over clusters."""

    divergence: Divergence | None
    contexts: tuple[Context, ...]
    positions: tuple[Stretch, ...]

    @property
    def label(self) -> str:
        """What the checkpoint is called in the report."""
        return self.subject.label

    @property
    def perplexity(self) -> float:
        """exp(sum of NLL / number of tokens)."""
        return perplexity_of(self.nll.value)

    @property
    def ratio(self) -> Mean | None:
        """The perplexity over the first checkpoint's, with the error that the difference's implies."""
        if self.nll_above_first is None:
            return None
        ratio, error = perplexity_of(self.nll_above_first.value), self.nll_above_first.standard_error
        return Mean(ratio, None if error is None else ratio * error)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits the model needs for a byte of the text; comparable between tokenizers."""
        return bits_per_byte(self.nll.value * self.sample.num_tokens, self.sample.num_bytes)

    @property
    def sample(self) -> Sample:
        """The tokens it was measured on."""
        return self.subject.material.sample

    @property
    def num_heads(self) -> int:
        """Query heads of an attention layer."""
        return decoder_config(self.subject.config).num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """The row as report.json holds it."""
        result, cache, material = self.result, self.result.kv_cache, self.subject.material
        return {
            "label": self.label,
            "path": str(self.subject.path),
            "fingerprint": result.fingerprint,
            "model_type": self.subject.config.model_type,
            "attention": attention_kind(decoder_config(self.subject.config)),
            "num_heads": self.num_heads,
            "num_kv_heads": cache.num_kv_heads,
            "parameters": result.parameters,
            "weight_bytes": result.weight_bytes,
            "dtype": result.dtype,
            "stored_dtype": dtype_name(result.precision.stored),
            "perplexity": self.perplexity,
            "nll": self.nll.value,
            "nll_standard_error": self.nll.standard_error,
            "perplexity_ratio": self.ratio and self.ratio.value,
            "perplexity_ratio_interval": self.ratio_interval and list(self.ratio_interval),
            "nll_above_first": self.nll_above_first and self.nll_above_first.value,
            "nll_above_first_standard_error": self.nll_above_first and self.nll_above_first.standard_error,
            "bits_per_byte": self.bits_per_byte,
            "sample": {
                "tokens": self.sample.num_tokens,
                "bytes": self.sample.num_bytes,
                **material.facts(),
                "cluster": self.sample.unit,
                "clusters": self.sample.num_clusters,
                "text_sha256": material.sha256,
            },
            "kv_cache": cache.to_dict(),
            "scoring_seconds": round(result.seconds, 3),
            "history": self.subject.history,
            "contexts": [context.to_dict() for context in self.contexts],
            "positions": [stretch.to_dict() for stretch in self.positions],
            "divergence": self.divergence and self.divergence.to_dict(),
            "recall": [found.to_dict() for found in result.recall],
            "tasks": result.tasks,
            "continuations": [made.to_dict() for made in result.continuations],
            "layers": [layer.to_dict() for layer in result.layers],
            "speed": [] if result.speed is None else [cell.to_dict() for cell in result.speed.cells],
        }


def build_rows(subjects: list[Subject], results: list[Result]) -> tuple[Row, ...]:
    """The rows of a report, the first checkpoint's first."""
    return tuple(
        _row(subject, result, subjects[0], results[0]) for subject, result in zip(subjects, results, strict=True)
    )


def _row(subject: Subject, result: Result, first: Subject, baseline: Result) -> Row:
    sample, is_first = subject.material.sample, result is baseline
    same = subject.material is first.material
    above = result.nlls - baseline.nlls if same else None
    longest = max(result.windows)
    material, nlls = result.windows[longest]
    return Row(
        subject=subject,
        result=result,
        nll=sample.mean(result.nlls),
        nll_above_first=None if above is None else sample.mean(above),
        ratio_interval=None if above is None or is_first else ratio_interval(above[sample.scored], sample.cluster),
        divergence=None if is_first else summarise(result.scores, sample, first.label),
        contexts=by_window(result.windows, baseline.windows if same else None),
        positions=by_position(material, nlls, nlls - baseline.windows[longest][1] if same else None),
    )
