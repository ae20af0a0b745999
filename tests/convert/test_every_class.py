"""Every causal class of transformers is supported, or refused by name for a reason that holds.

The families are those of one release. Another one has classes of its own, which break nobody: what the two have in
common is held against the installed one, and whether it is all of it only where the release is that one.
"""

from importlib.metadata import version
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from gqa.convert.errors import UserError
from gqa.convert.families.refused import REFUSED
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.family import all_families, check_supported

RELEASE = "5.24"
"""of transformers, whose classes have all been looked at"""
UNEXAMINED: set[str] = set()
"""classes that nobody has looked at yet; a new release may put some here, for a while"""

of_that_release = pytest.mark.skipif(
    not version("transformers").startswith(f"{RELEASE}."), reason=f"other classes than those of {RELEASE}"
)


def refused_because(*words: str) -> list[str]:
    """The model types, of those that transformers has a causal class for, whose reason has all of the words."""
    return sorted(
        model_type
        for model_type, reason in REFUSED.items()
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and all(word in reason for word in words)
    )


def fields(model_type: str) -> set[str]:
    """The settings that a model type's configuration class declares."""
    config: Any = CONFIG_MAPPING[model_type]
    return {name for kind in config.__mro__ for name in getattr(kind, "__annotations__", {})}


@of_that_release
def test_every_class_is_supported_or_refused_or_known_to_be_unexamined():
    known = all_families().keys() | REWRITTEN.keys() | REFUSED.keys() | WRAPPERS.keys()
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - known == UNEXAMINED


@of_that_release
def test_every_family_has_a_class():
    own_code = {name for name, rewrite in REWRITTEN.items() if rewrite.own_code}
    assert own_code.isdisjoint(CONFIG_MAPPING)
    ours = {name for name, family in all_families().items() if family.own_code}
    assert ours.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
    assert (all_families().keys() | REWRITTEN.keys()) - own_code - ours <= classes


def test_refused_families_are_no_supported_ones():
    assert REFUSED.keys().isdisjoint(all_families())
    assert REFUSED.keys().isdisjoint(REWRITTEN)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refusal_gives_its_reason(model_type):
    with pytest.raises(UserError, match=f"^{model_type} can't be converted: ") as refusal:
        check_supported({"model_type": model_type})
    assert str(refusal.value).endswith(REFUSED[model_type])


@pytest.mark.parametrize("model_type", refused_because("no setting"))
def test_a_class_said_to_have_no_setting_has_none(model_type):
    assert not any("kv_heads" in name or "key_value_heads" in name for name in fields(model_type))


@pytest.mark.parametrize("model_type", refused_because("MLA"))
def test_a_class_said_to_cache_a_latent_has_one(model_type):
    text = "dots3_note_text" if model_type == "dots3_note" else model_type
    assert "kv_lora_rank" in fields(text)


@pytest.mark.parametrize("model_type", refused_because("pass through a convolution"))
def test_a_class_said_to_convolve_keys_and_values_does(model_type):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type]())
    convolved = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv1d)]
    assert any(".self_attn." in name for name in convolved)


@pytest.mark.parametrize("model_type", refused_because("several times over"))
def test_a_class_said_to_run_its_layers_again_has_loops(model_type):
    assert "n_recurrent_loops" in fields(model_type)


@pytest.mark.parametrize("model_type", refused_because("two of five"))
def test_a_class_said_to_be_recurrent_in_two_layers_of_five_is(model_type):
    config: Any = CONFIG_MAPPING[model_type]()
    assert config.layer_types[:5].count("linear_attention") == 2


@pytest.mark.parametrize("model_type", refused_because("multimodal"))
def test_a_class_said_to_be_multimodal_has_parts(model_type):
    assert CONFIG_MAPPING[model_type].sub_configs or model_type == "moshi"


@pytest.mark.parametrize("model_type", refused_because("saved on its own as"))
def test_the_language_model_of_a_multimodal_class_is_supported(model_type):
    text = CONFIG_MAPPING[model_type]().get_text_config().model_type
    assert REFUSED[model_type].endswith(f" as {text}")
    assert text in all_families()
