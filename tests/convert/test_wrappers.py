"""Multimodal checkpoints: their language model is converted where it stands, everything else stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, Llama4ForConditionalGeneration, PreTrainedModel

from gqa.convert.errors import UserError
from gqa.convert.families.refused import REFUSED
from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.family import all_families
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

HEADS, GROUPS = 8, 2
IMAGE = 95
IDS = torch.tensor([[1, 5, 6, *[IMAGE] * 4, 7, 8, 9, 10, 11]])

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
CLIP, SIGLIP = {"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model"}
EARS: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WHISPERS: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "max_source_positions": 16,
}
WIDE, NARROW = {"hidden_size": 64}, {"hidden_size": 64, "head_dim": None}
TEXTS = {
    "apertus1p5": ("apertus1p5_text", NARROW, {"codebook_size": 8, "base_channels": 32, "channel_multiplier": [1]}),
    "aria": ("aria_text", {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}, {}),
    "aya_vision": ("cohere2", {}, SIGLIP),
    "cohere2_vision": ("cohere2", {}, SIGLIP),
    "deepseek_vl": ("llama", {}, SIGLIP),
    "exaone4_5": ("exaone4", NARROW, {"depth": 1, "num_heads": 2, "num_key_value_heads": 1, "out_hidden_size": 64}),
    "gemma3": ("gemma3_text", {}, SIGLIP),
    "glmasr": ("llama", {}, {}),
    "got_ocr2": ("qwen2", WIDE, {}),
    "granite_speech": ("granite", NARROW, {}),
    "idefics2": ("mistral", {}, {}),
    "idefics3": ("llama", {}, {}),
    "internvl": ("qwen2", WIDE, {}),
    "janus": ("llama", {}, {"projection_dim": 48}),
    "lighton_ocr": ("qwen3", {}, {"model_type": "pixtral"}),
    "llama4": ("llama4_text", {"num_local_experts": 4, "intermediate_size_mlp": 32}, {}),
    "llava": ("llama", {}, CLIP),
    "llava_next": ("llama", {}, CLIP),
    "llava_next_video": ("llama", {}, CLIP),
    "llava_onevision": ("qwen2", WIDE, SIGLIP),
    "mistral3": ("mistral", {}, {"model_type": "pixtral"}),
    "omniasr": ("llama", {}, {}),
    "ovis2": ("qwen2", WIDE, {"vocab_size": 32, "num_visual_indicator_tokens": 5}),
    "paligemma": ("gemma", {}, SIGLIP),
    "qwen2_audio": ("qwen2", WIDE, {}),
    "qwen3_asr": ("qwen3", {}, {}),
    "smolvlm": ("llama", {}, {}),
    "video_llama_3": ("qwen2", WIDE, {}),
    "video_llava": ("llama", {}, CLIP),
    "vipllava": ("llama", {}, CLIP),
    "voxtral": ("llama", {}, {}),
}
"""of every wrapper a language model it comes with, what that needs beside SIZES, and its eyes, if it has any"""
BESIDE: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "audio_config": {"model_type": "wavtokenizer_encoder", "codebook_size": 8},
        "audio_token_id": 71,
        "image_token_offset": 72,
        "audio_token_offset": 80,
    },
    "glmasr": {"audio_config": EARS | {"head_dim": 8, "num_mel_bins": 8, "max_position_embeddings": 16}},
    "granite_speech": {
        "encoder_config": {
            "hidden_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "dim_head": 8,
            "input_dim": 8,
            "output_dim": 8,
            "context_size": 4,
            "max_pos_emb": 8,
        },
        "projector_config": EARS | {"model_type": "blip_2_qformer", "encoder_hidden_size": 16},
        "has_lora_adapter": False,
    },
    "idefics2": {"perceiver_config": {"hidden_size": 48, "resampler_n_latents": 4, "resampler_depth": 1}},
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}},
    "omniasr": {
        "audio_config": EARS
        | {
            "conv_dim": [16],
            "conv_kernel": [4],
            "conv_stride": [2],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    },
    "ovis2": {"visual_indicator_token_ids": [90, 91, 92, 93, 94], "vocab_size": 96, "hidden_size": 64},
    "qwen2_audio": {"audio_config": WHISPERS},
    "qwen3_asr": {"audio_config": WHISPERS},
    "video_llama_3": {"video_token_id": 94},
    "voxtral": {"audio_config": EARS | {"num_mel_bins": 8, "max_source_positions": 16}},
}
"""what wrappers need beside"""
BLIND = {"glmasr", "granite_speech", "omniasr", "qwen2_audio", "qwen3_asr", "voxtral"}
"""those that only hear"""


def model_of(wrapper: str, num_kv_heads: int, *, seed: int = 0) -> PreTrainedModel:
    """A tiny model of transformers' own class, everything random."""
    text, extra, eyes = TEXTS[wrapper]
    written = SIZES | {"model_type": text, "num_key_value_heads": num_kv_heads} | extra
    parts: dict[str, Any] = {"vision_config": EYES | eyes, "image_token_index": IMAGE, "image_token_id": IMAGE}
    if wrapper in BLIND:
        parts = {}
    config = AutoConfig.for_model(
        wrapper,
        text_config={key: value for key, value in written.items() if value is not None},
        **(parts | BESIDE.get(wrapper, {})),
    )
    torch.manual_seed(seed)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float64, experts_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def tied(wrapper: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with few KV heads, and one with as many as query heads that computes the same."""
    small, large = model_of(wrapper, GROUPS), model_of(wrapper, HEADS)
    sizes, state = large.state_dict(), {}
    for name, tensor in small.state_dict().items():
        if tensor.shape != sizes[name].shape:
            tensor = tensor.unflatten(0, (GROUPS, -1)).repeat_interleave(HEADS // GROUPS, dim=0).flatten(0, 1)
        state[name] = tensor
    large.load_state_dict(state)
    return small, large


def loaded(path: Path) -> PreTrainedModel:
    settings: dict[str, Any] = {"dtype": "auto", "experts_implementation": "eager", "output_loading_info": True}
    model, info = AutoModelForMultimodalLM.from_pretrained(path, **settings)  # pyright: ignore[reportGeneralTypeIssues]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel, **image: torch.Tensor) -> torch.Tensor:
    if isinstance(model, Llama4ForConditionalGeneration):  # whose own forward transformers 5.24 breaks
        model = model.language_model
    return model(input_ids=IDS if image else IDS.clamp(max=50), **image).logits


def test_every_wrapper_is_tested_and_none_is_a_family_or_refused():
    assert TEXTS.keys() == WRAPPERS.keys()
    assert WRAPPERS.keys().isdisjoint(all_families().keys() | REFUSED.keys())


@pytest.mark.parametrize("wrapper", TEXTS)
def test_tied_heads_merge_without_loss_and_the_rest_stays(wrapper, tmp_path):
    small, large = tied(wrapper)
    large.save_pretrained(tmp_path / "ckpt")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=GROUPS))
    model, expected = loaded(tmp_path / "out"), small.state_dict()
    assert model.config.get_text_config().num_key_value_heads == GROUPS
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    convert(tmp_path / "ckpt", tmp_path / "lowrank", ConvertOptions(groups=GROUPS, method="lowrank"))
    torch.testing.assert_close(logits(loaded(tmp_path / "lowrank")), logits(small), rtol=0, atol=1e-5)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    model_of("llava", HEADS).save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def test_it_sees_what_it_saw(tmp_path):
    small, large = tied("llava")
    large.save_pretrained(tmp_path / "ckpt")
    convert(tmp_path / "ckpt", tmp_path / "out", ConvertOptions(groups=GROUPS))
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = logits(loaded(tmp_path / "out"), pixel_values=pixels)
    torch.testing.assert_close(seen, logits(small, pixel_values=pixels), rtol=0, atol=1e-5)
    assert not torch.allclose(seen, logits(small, pixel_values=-pixels))


@pytest.mark.parametrize("wrapper", TEXTS)
def test_the_language_model_runs_alone_layer_by_layer(wrapper, tmp_path):
    model_of(wrapper, HEADS).save_pretrained(tmp_path)
    staged = StagedModel(tmp_path, dtype=torch.float64, device=torch.device("cpu"))
    ids = IDS.clamp(max=50)
    hidden = staged.embed(ids)
    for index in range(staged.num_layers):
        with staged.layer(index) as run, torch.no_grad():
            hidden = run(hidden)
    model = loaded(tmp_path)
    # what scales the logits of cohere2 on its own is left out by the classes that it is the language model of
    scale = model.config.text_config.logit_scale if wrapper in ("aya_vision", "cohere2_vision") else 1
    torch.testing.assert_close(staged.head(hidden), scale * logits(model), rtol=0, atol=1e-5)


def test_only_the_text_config_changes(llava, tmp_path):
    convert(llava, tmp_path / "out", ConvertOptions(groups=GROUPS))
    before, after = (json.loads((path / "config.json").read_text()) for path in (llava, tmp_path / "out"))
    assert after["text_config"].pop("num_key_value_heads") == GROUPS
    del before["text_config"]["num_key_value_heads"]
    assert all(after["text_config"][key] == value for key, value in before["text_config"].items())
    del before["text_config"], after["text_config"]
    assert before == after


def test_sizes_that_the_text_config_leaves_out_are_those_of_its_class(tmp_path, llava):
    config = json.loads((llava / "config.json").read_text())
    config["text_config"] = {"model_type": "llama", "vocab_size": 96}
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json implies \[4096, 4096\]"):
        plan_conversion(llava, ConvertOptions(groups=8))


def test_names_of_newer_checkpoints(llava, tmp_path):
    plain = convert(llava, tmp_path / "plain", ConvertOptions(groups=GROUPS))
    tensors = load_file(llava / "model.safetensors")
    renamed = {name.replace("language_model.model.", "model.language_model."): tensors[name] for name in tensors}
    save_file(renamed, llava / "model.safetensors", {"format": "pt"})
    plan = convert(llava, tmp_path / "out", ConvertOptions(groups=GROUPS))
    assert plan.prefixes == [f"model.language_model.layers.{layer}.self_attn." for layer in range(2)]
    assert plain.layers == plan.layers


def test_no_text_config(llava):
    config = json.loads((llava / "config.json").read_text())
    del config["text_config"]
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="llava has no text_config"):
        plan_conversion(llava, ConvertOptions(groups=2))


def test_a_language_model_that_is_refused(llava):
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["model_type"] = "deepseek_v3"
    (llava / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="deepseek_v3 can't be converted"):
        plan_conversion(llava, ConvertOptions(groups=2))
