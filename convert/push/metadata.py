"""The metadata on top of a model card, by which the Hub sorts, links and loads a checkpoint."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.push.facts import Facts

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a checkpoint is for."""

    pipeline_tag: str
    auto_class: str
    """of transformers, which loads it"""
    reader: str = "AutoTokenizer"
    """of transformers, which makes its inputs"""


_TEXT = Task(pipeline_tag="text-generation", auto_class="AutoModelForCausalLM")
_PAIRS = Task(pipeline_tag="text2text-generation", auto_class="AutoModelForSeq2SeqLM")
_SPEECH = Task(
    pipeline_tag="automatic-speech-recognition", auto_class="AutoModelForSpeechSeq2Seq", reader="AutoProcessor"
)
_IMAGES = Task(pipeline_tag="image-text-to-text", auto_class="AutoModelForImageTextToText", reader="AutoProcessor")


def task_of(config: "dict[str, Any] | Any") -> Task:
    """The task of a checkpoint, by config.json."""
    own = config.get("auto_map") or {}
    named = next((task for task in (_SPEECH, _PAIRS, _TEXT) if task.auto_class in own), None)
    if named:
        return named
    if "text_config" in config:
        return _IMAGES
    return _PAIRS if config.get("is_encoder_decoder") else _TEXT


def metadata(facts: Facts) -> str:
    """The block of YAML, between its lines of dashes."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        **facts.inherited,
        library_name="transformers",
        pipeline_tag=task_of(facts.config).pipeline_tag,
        tags=_tags(facts),
        base_model=facts.base_model,
        # Of the relations that the Hub knows (adapter, merge, quantized, finetune) this alone keeps the weights whole.
        base_model_relation="finetune" if facts.base_model else None,
        datasets=_datasets(facts) or None,
        model_name=facts.repo_id.rpartition("/")[2] if facts.results else None,
        eval_results=_eval_results(facts),
    )
    return f"---\n{data.to_yaml()}\n---"


def _tags(facts: Facts) -> list[str] | None:
    _, after = facts.heads
    tags = ["custom_code"] if facts.own_code else []  # the Hub's word for what needs `trust_remote_code`
    if facts.latent:
        tags.append("mla")
    elif facts.merged:
        tags.append("mqa" if set(after) == {1} else "gqa")
    return tags or None


def _datasets(facts: Facts) -> list[str]:
    """Datasets on the Hub that the weights were made with, not those they were measured on."""
    used = [stage["calibration"]["data"] for stage in facts.conversions if stage.get("calibration")]
    for stage in facts.trainings:
        data = stage["config"]["data"]
        used += [data] if isinstance(data, str) else data
    return [name for name in dict.fromkeys(used) if name in facts.hub_data]


def _eval_results(facts: Facts) -> "list[EvalResult] | None":
    """The checkpoint's own figures; the original's stand in the card's table, where they can't be taken for its."""
    from huggingface_hub import EvalResult

    if facts.results is None:
        return None
    options, own = facts.results.report["options"], facts.results.own
    on_hub, task = options["data"] in facts.hub_data, task_of(facts.config)
    name = options["data"] if on_hub else Path(options["data"]).name
    figures = {"perplexity": own["perplexity"], "bits_per_byte": own.get("bits_per_byte")}
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=name,
            dataset_name=name,
            dataset_config=options.get("subset") if on_hub else None,
            dataset_split=options.get("split") if on_hub else None,
            metric_type=metric,
            metric_name=metric.replace("_", " ").capitalize(),
            metric_value=round(value, 4),
        )
        for metric, value in figures.items()
        if value is not None and math.isfinite(value)
    ]
