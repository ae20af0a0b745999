"""One checkpoint's row in a report: what was measured, compared with the report's first checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gqa.eval.cache import CacheSize, decoder_config
from gqa.eval.estimate import Mean, Sample, bits_per_byte, perplexity_of
from gqa.eval.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out of loading and running one checkpoint."""

    nlls: np.ndarray
    """[tokens] negative log-likelihoods in nats; 0 where a token is not scored."""

    seconds: float
    dtype: str
    parameters: int
    weight_bytes: int
    fingerprint: str
    kv_cache: CacheSize


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint, as reported."""

    subject: Subject
    result: Result
    nll: Mean
    nll_above_first: Mean | None
    """The mean difference to the first checkpoint on the same tokens, so its error is that of paired samples.
    None when the two tokenise the data differently, which makes their perplexities incomparable."""

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
            "num_heads": self.num_heads,
            "num_kv_heads": cache.num_kv_heads,
            "parameters": result.parameters,
            "weight_bytes": result.weight_bytes,
            "dtype": result.dtype,
            "perplexity": self.perplexity,
            "nll": self.nll.value,
            "nll_standard_error": self.nll.standard_error,
            "perplexity_ratio": self.ratio and self.ratio.value,
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
        }


def build_rows(subjects: list[Subject], results: list[Result]) -> tuple[Row, ...]:
    """The rows of a report, the first checkpoint's first."""
    first, baseline = subjects[0], results[0]
    rows = []
    for subject, result in zip(subjects, results, strict=True):
        sample = subject.material.sample
        same = subject.material is first.material
        above = sample.mean(result.nlls - baseline.nlls) if same else None
        rows.append(Row(subject=subject, result=result, nll=sample.mean(result.nlls), nll_above_first=above))
    return tuple(rows)
