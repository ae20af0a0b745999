"""Continued pretraining of a converted checkpoint: checkpoint in, recovered checkpoint out.

from gqa.uptrain import UptrainConfig, uptrain
uptrain(UptrainConfig(checkpoint="llama-gqa8", data="corpus.jsonl", max_tokens=10_000_000))
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily
from gqa.uptrain.config import UptrainConfig

if TYPE_CHECKING:
    from gqa.uptrain.cache_teacher import cache_teacher as draw_from_teacher
    from gqa.uptrain.exporting import export_saved
    from gqa.uptrain.run import UptrainResult

__all__ = ["UptrainConfig", "UptrainResult", "draw_from_teacher", "export_saved", "uptrain"]

__getattr__ = lazily(
    __name__,
    {
        "UptrainResult": "gqa.uptrain.run:UptrainResult",
        "draw_from_teacher": "gqa.uptrain.cache_teacher:cache_teacher",
        "export_saved": "gqa.uptrain.exporting:export_saved",
    },
)


def uptrain(config: UptrainConfig) -> "UptrainResult":
    """Train as `config` says and write the finished checkpoint to `config.output`; see `gqa.uptrain.run.run`."""
    from gqa.uptrain.run import run  # torch and transformers take seconds to import

    return run(config)
