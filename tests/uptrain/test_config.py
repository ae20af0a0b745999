"""The options: refused at the door, in one sentence, with the fix; documented one by one."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.uptrain.config import FREE_ON_RESUME, NAMES_OF_CONTENT, UptrainConfig
from gqa.uptrain.flags import field_docs
from gqa.uptrain.recipe import RIVALS, overlay

ENOUGH: dict[str, Any] = {"checkpoint": "ckpt", "data": "text.jsonl", "max_steps": 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_steps": None}, "no budget"),
        ({"max_tokens": 100}, "max_tokens and max_steps are both budgets"),
        ({"max_steps": None, "alpha": 0.05}, "alpha and pretraining_tokens belong together"),
        ({"pretraining_tokens": 100}, "alpha and pretraining_tokens belong together"),
        ({"batch_size": 2, "batch_tokens": 64}, "two ways to say one thing"),
        ({"max_steps": 0}, "max_steps must be above 0, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"max_steps": None, "alpha": float("inf"), "pretraining_tokens": 100}, "alpha must be finite, got inf"),
        ({"seed": 2**64}, "seed must be at most 4294967295, got 18446744073709551616"),
        ({"seed": -1}, "seed must not be negative"),
        ({"memory_limit": 2.0}, "add find_batch, or leave memory_limit out"),
        ({"patience": 2, "validation_tokens": 0}, "patience counts validations, and there are none"),
        ({"patience": 2, "validation_share": 0.0}, "patience counts validations, and there are none"),
        ({"warmup_ratio": 1.5}, "warmup_ratio is a share between 0 and 1"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1"),
        ({"schedule": "wsd", "warmup_ratio": 0.9}, "exceed the whole run"),
        ({"teacher": "none", "offline_teacher": True}, "need a teacher, and teacher is none"),
        ({"teacher": "none", "attention_weight": 1.0}, "need a teacher, and teacher is none"),
        ({"offline_teacher": True, "divergence": "reverse"}, "forward KL alone"),
        ({"offline_teacher": True, "attention_weight": 1.0}, "forward KL alone"),
        ({"attention_weight": 1.0, "compile": True}, "attention_weight looks into the model"),
        ({"divergence": "total"}, "'forward', 'reverse' or 'jensen-shannon'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"ce_weight": 1.5}, "ce_weight is a share between 0 and 1"),
        ({"kv_lr_multiplier": 0.0}, "kv_lr_multiplier must be above 0"),
        ({"train": "values"}, "'all', 'attention' or 'kv'"),
        ({"sequence_lenght": 32}, "did you mean 'sequence_length'"),
        ({"schedule": "linear"}, "'cosine' or 'wsd'"),
        ({"trackers": ["mlflow"]}, "'tensorboard', 'wandb' or 'trackio'"),
        ({"max_steps": "many"}, "max_steps"),
        ({"checkpoint": None}, "checkpoint"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said) as caught:
        build_options(UptrainConfig, ENOUGH | changes, "recipe demo.toml, [uptrain]")
    assert str(caught.value).startswith("recipe demo.toml, [uptrain]: ")
    assert "\n" not in str(caught.value)


def test_the_largest_seed_and_what_patience_needs_are_taken():
    given = ENOUGH | {"seed": 2**32 - 1, "patience": 2, "validation_share": 0.0, "validation_data": "held-out.jsonl"}
    assert UptrainConfig(**given).seed == 4294967295


def test_the_dataclass_itself_refuses_too():
    with pytest.raises(UserError, match="no budget"):
        UptrainConfig(checkpoint="ckpt", data="text")


def test_it_is_frozen_and_every_field_is_documented():
    config = UptrainConfig(**ENOUGH)
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    names = [field.name for field in fields(UptrainConfig)]
    assert list(field_docs(UptrainConfig)) == names
    assert set(names) > FREE_ON_RESUME | NAMES_OF_CONTENT
    assert set().union(*(way for ways in RIVALS for way in ways)) < set(names)


def test_a_new_budget_replaces_the_old_one():
    assert overlay({"alpha": 0.05, "pretraining_tokens": 9, "seed": 1}, {"max_steps": 2}) == {"seed": 1, "max_steps": 2}
    assert overlay({"max_steps": 2}, {"alpha": 0.05, "pretraining_tokens": 9}) == {
        "alpha": 0.05,
        "pretraining_tokens": 9,
    }
    assert overlay({"alpha": 0.05, "pretraining_tokens": 9}, {"alpha": 0.1}) == {"alpha": 0.1, "pretraining_tokens": 9}
    assert overlay({"batch_size": 2}, {"batch_tokens": 64}) == {"batch_tokens": 64}
