"""The sections of a model card that tell what was done, how to do it again, and what the result is not good for."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gqa.convert.push.facts import Facts, only_repeated
from gqa.convert.push.lineage import hub_name
from gqa.convert.tables import plain_options, to_toml
from gqa.convert.uneven import span

_PAPER = "([Ainslie et al. 2023](https://arxiv.org/abs/2305.13245))"
_METHODS = {
    "mean": "each group's projections are the mean of its heads' (the paper's way)",
    "first": "each group keeps its first head",
    "random": "each group has new random projections in place of its heads'",
    "aligned": "each group's projections are the mean of its heads', rotated onto each other",
    "lowrank": "each group has the keys and values from which its heads' scores and outputs are read off best",
}
_OF_ONE_MACHINE = frozenset(
    {"checkpoint", "output", "run_dir", "overwrite", "resume", "cache_dir", "quiet", "trackers"}
    | {"keep_checkpoints", "log_every", "save_every", "device"}
)
"""options that say where and how a run went, and nothing of what came out"""
_CONVERTING = ("method", "grouping", "encoder", "keep_architecture", "seed", "dtype", "calibration", "fit")


def summary(facts: Facts) -> str:
    """The paragraph under the title."""
    before, after = facts.heads
    latent = facts.latent
    trained = " and trained further" if facts.trainings else ""
    if not before:
        return f"This is {facts.original}, trained further."
    if latent:
        return (
            f"This is {facts.original} with multi-head latent attention in place of {span(before)} key/value heads: a "
            f"latent of {latent['kv_rank']} numbers and a rotary key of {latent['rope_dim']} are cached for a token in "
            f"every layer{trained}."
        )
    if not facts.merged:
        kind = f"{facts.config['model_type']} checkpoint"
        return f"This is {facts.original} as a {kind}, all {span(after)} KV heads kept{trained}."
    kind = "multi-query" if set(after) == {1} else "grouped-query"
    return (
        f"This is {facts.original} with {span(after)} key/value heads in place of {span(before)}: {kind} attention "
        f"{_PAPER}, made by merging heads{trained}. In these layers its KV cache takes {sum(after) / sum(before):.3g} "
        "of the bytes that the original's takes."
    )


def what_was_done(facts: Facts) -> list[str]:
    """A sentence or two for everything that was done, oldest first."""
    tell = {"convert": _conversion, "uptrain": _training}
    return [line for stage in facts.stages if stage["stage"] in tell for line in tell[stage["stage"]](facts, stage)]


def _conversion(facts: Facts, stage: Mapping[str, Any]) -> Iterator[str]:
    before, after = stage["kv_heads_before"], stage["kv_heads_after"]
    if latent := stage.get("latent"):
        is_constant = stage["model_type"] == "youtu"  # one of the numbers
        size = f"{latent['kv_rank'] - is_constant} numbers{' and a constant' * is_constant}"
        yield (
            "Of keys, what depends on positions became one rotary key, which all heads read; the rest and all values "
            f"became one latent of {size}, by a joint low-rank factorisation (`--to mla`). The weights are those of a "
            f"{stage['model_type']} checkpoint."
        )
    else:
        yield from _change_of_class(stage)
    if not latent and len(set(before)) > 1 and "encoder" not in stage:  # whose attentions differ by their kind
        yield (
            f"Layers had {span(before)} key/value heads; each has {span(after)} now. Where that is a multiple, heads "
            "were repeated, which changes nothing."
        )
    if not latent and not only_repeated(before, after):
        which = "heads that are alike share" if stage["grouping"] == "similar" else "neighbouring heads share"
        yield (
            f"Keys and values were merged from {span(before)} to {span(after)} heads (`--method {stage['method']}`): "
            f"{_METHODS.get(stage['method'], 'as that method does')}; {which}."
        )
    if calibration := stage.get("calibration"):
        tokens, text = f"{calibration['tokens']:,} tokens", facts.data_name(calibration["data"])
        yield f"What enters the projections was measured on {tokens} of {text}."
        if fit := stage.get("fit"):
            yield f"Every layer's attention was then fitted to the original's on that text, in {fit['steps']:,} steps."


def _change_of_class(stage: Mapping[str, Any]) -> Iterator[str]:
    old, new, code = stage.get("rewritten_from"), stage["model_type"], stage.get("own_code")
    if not old:
        return
    merged = not only_repeated(stage["kv_heads_before"], stage["kv_heads_after"])
    but = ", but for the heads that merge" if merged else ""
    if code:
        yield (
            f"No class of transformers holds a {old} with fewer KV heads. This is a {new} checkpoint, the same "
            f"model{but}, in code of its own: `{code}` in this repository."
        )
    else:
        yield (
            f"No class of transformers holds a {old} with fewer KV heads. The weights were rewritten into a {new} "
            f"checkpoint, which computes the same up to rounding{but}."
        )


def _training(facts: Facts, stage: Mapping[str, Any]) -> Iterator[str]:
    config, losses = stage["config"], [line["validation_perplexity"] for line in stage.get("validation") or []]
    data = [config["data"]] if isinstance(config["data"], str) else config["data"]
    text = ", ".join(dict.fromkeys(map(facts.data_name, data)))
    watched = f"; perplexity on validation text went from {losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""
    yield (
        f"Uptrained: {stage.get('trained', 'all weights')}, on {stage['tokens']:,} tokens of {text}, in "
        f"{stage['steps']:,} steps at a learning rate of up to {config['learning_rate']:g}, "
        f"{_lesson(facts, stage)}{watched}."
    )


def _lesson(facts: Facts, stage: Mapping[str, Any]) -> str:
    """By what a training's weights were changed."""
    config, teacher = stage["config"], stage.get("teacher")
    if not teacher:
        return "by cross-entropy"
    is_original = teacher["fingerprint"] == facts.stages[0]["source"]["fingerprint"]
    whose = "the original" if is_original else hub_name({"source": teacher}) or f"`{Path(teacher['path']).name}`"
    measure = {"jensen-shannon": "Jensen-Shannon divergence"}.get(config["divergence"], f"{config['divergence']} KL")
    mixed = f" and {config['ce_weight']:.0%} of cross-entropy" if config.get("ce_weight") else ""
    return f"by distillation from {whose} ({measure}{mixed})"


def how_to_make_it_again(facts: Facts) -> str:
    """Every command as it was typed, the versions, and the options as a recipe."""
    commands = list(dict.fromkeys(shlex.join(stage["command"]) for stage in facts.stages))
    versions = ", ".join(f"{name} {version}" for name, version in facts.stages[-1]["versions"].items())
    lines = ["```", *commands, "```", "", f"With {versions}; the original was `{_original_hash(facts)}`."]
    if recipe := _recipe(facts):
        lines += ["", "<details>", "<summary>The same as a recipe for <code>gqa-run</code></summary>"]
        lines += ["", "```toml", to_toml(recipe).rstrip(), "```", "", "</details>"]
    return "\n".join(lines)


def _original_hash(facts: Facts) -> str:
    return facts.stages[0]["source"]["fingerprint"]


def _recipe(facts: Facts) -> dict[str, Any] | None:
    """The tables of a recipe; None where it took other stages than one conversion to heads and one training."""
    _, after = facts.heads
    stages = [stage["stage"] for stage in facts.stages]
    if stages != ["convert", "uptrain"] or len(set(after)) != 1 or facts.latent:
        return None
    conversion, training = facts.stages
    converting = {"groups": after[0]} | {key: conversion[key] for key in _CONVERTING if key in conversion}
    tables = {"convert": converting, "uptrain": training["config"]}
    if facts.results:
        tables["eval"] = facts.results.report["options"]
    named = {"checkpoint": facts.base_model or conversion["source"]["path"]}
    return named | {name: plain_options(_portable(table)) for name, table in tables.items()}


def _portable(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _portable(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
        if key not in _OF_ONE_MACHINE
    }


def limits(facts: Facts) -> list[str]:
    """What a user must know before relying on the checkpoint."""
    _, after = facts.heads
    lines = []
    if facts.merged and not facts.trainings:
        fitted = ", but for the fit of its layers" if facts.conversions[-1].get("fit") else ""
        done = "A latent took the place of heads" if facts.latent else "Heads were merged"
        lines.append(f"{done} and nothing was trained afterwards{fitted}: expect it to be worse than the original.")
    if facts.trainings:
        lines.append(
            "It was trained on the text named above; what that text does not show may be known less well than before."
        )
    if facts.results is None:
        lines.append("It was not evaluated, or no report of it was at hand.")
    else:
        lines.append(
            "Only the perplexity above was measured: no tasks, no other text, no longer contexts than that window."
        )
    lines += [
        f"The conversion was held back: {reason}."
        for stage in facts.conversions
        for reason in stage.get("restrictions") or []
    ]
    if facts.latent:
        lines.append("Under tensor parallelism every device caches the whole latent.")
    elif after and max(after) > 1:
        lines.append(f"For tensor parallelism, a number of devices that divides {span(after)} wastes no memory.")
    lines.append("What the original's card says of intended use, biases and risks holds here too.")
    return lines
