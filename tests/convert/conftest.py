"""Tiny real checkpoints of every family, made by transformers' own classes with every parameter randomised."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from free_layers import FreeMaps, Layers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from gqa.convert.cli import app

LEFT_OUT = object()  # a key that the configuration is to go without
HEADS, HEAD_DIM, HIDDEN, LAYERS, VOCABULARY = 8, 8, 48, 2, 96


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One shape of one family: the configuration keys beyond the common ones."""

    name: str
    model_type: str
    extra: dict[str, Any]

    def config(self, num_kv_heads: int = HEADS, **overrides: Any) -> Any:
        """The family's own configuration, tiny."""
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": num_kv_heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }
        given = {key: value for key, value in (sizes | self.extra | overrides).items() if value is not LEFT_OUT}
        return AutoConfig.for_model(self.model_type, **given)

    def model(self, num_kv_heads: int = HEADS, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """The family's own class in float64, norms and biases random too."""
        config = self.config(num_kv_heads, **overrides)
        config._experts_implementation = "eager"  # the fused expert kernels know no float64
        return randomised(AutoModelForCausalLM.from_config(config, dtype=torch.float64), seed)

    def shapes(self, num_kv_heads: int) -> dict[str, tuple[int, ...]]:
        """Of every tensor of the family's own class, by name."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config(num_kv_heads))
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def tied(self, groups: int) -> tuple[PreTrainedModel, PreTrainedModel]:
        """A grouped-query model of transformers' own, and the multi-head model that computes the same."""
        small, large = self.model(groups), self.model(HEADS)
        large.load_state_dict(self._expanded(small.state_dict(), groups))
        return small, large

    def _expanded(self, small: dict[str, Tensor], groups: int) -> dict[str, Tensor]:
        """The multi-head state dict in which every KV head of `small` stands once for each head of its group."""
        copies, sizes, large = HEADS // groups, self.shapes(HEADS), {}
        for name, tensor in small.items():
            if ".k_layernorm.norms." in name:  # one tensor a head
                head = int(name.split(".")[-2])
                for copy in range(copies):
                    large[name.replace(f"norms.{head}.", f"norms.{head * copies + copy}.")] = tensor
            elif tuple(tensor.shape) == sizes[name]:
                large[name] = tensor
            else:
                query, keys = tensor.split([rows := HEADS * HEAD_DIM * ("qkv_proj" in name), len(tensor) - rows])
                per_head = tensor.shape[0] == groups and "norm" in name
                heads = keys if per_head else keys.unflatten(0, (-1, HEAD_DIM))
                heads = heads.repeat_interleave(copies, dim=0)
                large[name] = torch.cat([query, heads if per_head else heads.flatten(0, 1)])
        return large


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with every parameter random, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if parameter.ndim == 1:
                parameter.add_(0.7)
    return model.eval()


@pytest.fixture(scope="session", name="randomised")
def randomised_fixture() -> Callable[..., PreTrainedModel]:
    return randomised


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **more}}


def _variant(name: str, model_type: Any = None, /, **extra: Any) -> Variant:
    return Variant(name=name, model_type=model_type or name, extra=extra)


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
_COMPASS_ROPE = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "full_attention": None,
    }
}
_SMALL_EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SMALL_EARS = {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2}
_NARROW = {"hidden_size": HEADS * HEAD_DIM, "head_dim": LEFT_OUT}  # classes that ignore `head_dim`

VARIANTS = [
    _variant("llama", **_rope(50000.0)),
    _variant("llama-bias", "llama", attention_bias=True),
    _variant("llama-tied", "llama", tie_word_embeddings=True),
    _variant("mistral"),
    _variant("mistral-window", "mistral", sliding_window=4),
    _variant("mixtral", num_local_experts=4, num_experts_per_tok=2),
    _variant("qwen2", **_rope(50000.0)),
    _variant("qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=16),
    _variant("qwen3"),
    _variant("qwen3-bias", "qwen3", attention_bias=True),
    _variant("qwen3_moe", **_EXPERTS),
    _variant("gemma"),
    _variant("gemma2", sliding_window=4),
    _variant("gemma3_text", sliding_window=4),
    _variant("phi", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("phi-norm", "phi", qk_layernorm=True, **_NARROW, **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("phi3", **_NARROW),
    _variant("stablelm", use_qkv_bias=True, **_NARROW, **_rope(10000.0, partial_rotary_factor=0.25)),
    _variant("stablelm-norm", "stablelm", qk_layernorm=True, **_NARROW),
    _variant("starcoder2"),
    _variant("olmo", **_NARROW),
    _variant("olmo-clip", "olmo", clip_qkv=0.5, **_NARROW),
    _variant("olmo2", **_NARROW),
    _variant("olmoe", num_experts=4, num_experts_per_tok=2, **_NARROW),
    _variant("cohere", **_NARROW),
    _variant("cohere-norm", "cohere", use_qk_norm=True, **_NARROW),
    _variant("granite", **_NARROW),
    _variant("smollm3", no_rope_layers=[1, 0]),
    _variant("nemotron", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("nemotron-bias", "nemotron", attention_bias=True),
    _variant("glm", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant(
        "gpt_oss",
        **_rope(50000.0),
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        layer_types=_LOCAL_AND_GLOBAL,
    ),
    _variant("afmoe", **_EXPERTS, num_dense_layers=1, sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("bitnet", **_NARROW),
]
"""every trait of attention that a family can have, for every test"""

KIN = [
    _variant("apertus", **_NARROW),
    _variant("apertus1p5_text", **_NARROW),
    _variant("apertus1p5_text-pruned", "apertus1p5_text", output_vocab_size=90, **_NARROW),
    _variant("arcee"),
    _variant("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
    _variant(
        "beam",
        **_EXPERTS,
        n_group=1,
        topk_group=1,
        sliding_window=4,
        layer_types=_LOCAL_AND_GLOBAL,
        mlp_layer_types=["dense", "sparse"],
    ),
    _variant("cohere_compass_text", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL, **_NARROW, **_COMPASS_ROPE),
    _variant("cohere2", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("cohere2_moe", **_EXPERTS, sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("cwm", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("dots1", **_EXPERTS, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1),
    _variant("ernie4_5"),
    _variant("ernie4_5-bias", "ernie4_5", use_bias=True),
    _variant("ernie4_5_moe", **_EXPERTS, **_NARROW, moe_k=2, moe_num_experts=4, moe_layer_start_index=1),
    _variant("exaone"),
    _variant("exaone-bias", "exaone", attention_bias=True),
    _variant("exaone4", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL, **_NARROW),
    _variant("exaone4-global", "exaone4", sliding_window=None, layer_types=["full_attention"] * LAYERS, **_NARROW),
    _variant("exaone_moe", **_EXPERTS, sliding_window=4, layer_types=_LOCAL_AND_GLOBAL, **_NARROW),
    _variant("flex_olmo", num_experts=4, num_experts_per_tok=2, **_NARROW),
    _variant("flint", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("glm4", **_rope(10000.0, partial_rotary_factor=0.5)),
    _variant("glm4_moe", **_EXPERTS, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1),
    _variant("glm4_moe-norm", "glm4_moe", **_EXPERTS, n_routed_experts=4, use_qk_norm=True),
    _variant("granite_swa", sliding_window=4, layer_rope_theta=[10000.0, 0], **_NARROW),
    _variant("granitemoe", num_local_experts=4, num_experts_per_tok=2, **_NARROW),
    _variant("granitemoe_swa", num_local_experts=4, num_experts_per_tok=2, sliding_window=4, **_NARROW),
    _variant("granitemoeshared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16, **_NARROW),
    _variant("helium", hidden_size=HEADS * HEAD_DIM),
    _variant("hunyuan_v1_dense"),
    _variant("hunyuan_v1_moe", num_experts=4, moe_topk=[2, 2]),
    _variant("hy_v3", **_EXPERTS, num_shared_experts=1),
    _variant("hyperclovax"),
    _variant("internlm3"),
    _variant("iquestcoder"),
    _variant("jais2"),
    _variant("kolibri1", **_EXPERTS, sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("llama4_text", num_local_experts=4, intermediate_size_mlp=32, no_rope_layers=[1, 0]),
    _variant("llama4_text-plain", "llama4_text", num_local_experts=4, intermediate_size_mlp=32, use_qk_norm=False),
    _variant("mellum", **_EXPERTS, sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("minimax_m2", num_local_experts=4, num_experts_per_tok=2),
    _variant("ministral", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL),
    _variant("ministral3"),
    _variant("nanochat", **_NARROW),
    _variant("olmo3", sliding_window=4, layer_types=_LOCAL_AND_GLOBAL, **_NARROW),
    _variant("phi4_multimodal", **_NARROW, vision_config=_SMALL_EYES, audio_config=_SMALL_EARS),
    _variant("phimoe", num_local_experts=4, num_experts_per_tok=2, **_NARROW),
    _variant("phimoe-bias", "phimoe", num_local_experts=4, num_experts_per_tok=2, attention_bias=True, **_NARROW),
    _variant("sarvam_moe", **_EXPERTS, n_routed_experts=4, n_shared_experts=1),
    _variant("sarvam_moe-plain", "sarvam_moe", **_EXPERTS, n_routed_experts=4, attention_bias=True, use_qk_norm=False),
    _variant("seed_oss"),
    _variant("solar_open", **_EXPERTS, n_routed_experts=4),
    _variant("vaultgemma", sliding_window=4),
]
"""families whose attention has the traits of one of VARIANTS, for `test_kin.py` and `test_free_maps.py`"""


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request) -> Variant:
    """Every family in each of its shapes."""
    return request.param


@pytest.fixture(params=KIN, ids=lambda variant: variant.name)
def kin(request) -> Variant:
    """Every family beside those of `variant`."""
    return request.param


@pytest.fixture
def variants() -> list[Variant]:
    """Every family in each of its shapes, those of `variant` and of `kin`."""
    return VARIANTS + KIN


@pytest.fixture
def llama() -> Variant:
    return VARIANTS[0]


@pytest.fixture
def qwen2() -> Variant:
    return next(variant for variant in VARIANTS if variant.name == "qwen2")


@pytest.fixture
def named() -> Callable[[str], Variant]:
    """A variant by its name."""
    return lambda name: next(variant for variant in VARIANTS + KIN if variant.name == name)


@pytest.fixture
def checkpoint(llama: Variant, tmp_path: Path) -> Path:
    """A float32 multi-head Llama checkpoint with side files, in one weight file."""
    path = tmp_path / "ckpt"
    llama.model().float().save_pretrained(path)
    (path / "tokenizer.json").write_text('{"odd": "\\u00e9\\n"}')
    (path / "tokenizer.model").write_bytes(bytes(range(256)))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "LICENSE").write_text("a licence")
    return path


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a batch of two, longer than every sliding window used here. [2, 12, vocabulary]."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def logits_of() -> Callable[[PreTrainedModel], torch.Tensor]:
    return logits


def load_cleanly(path: Path) -> PreTrainedModel:
    """The checkpoint through stock transformers, refusing anything missing, left over or of another shape."""
    settings: dict[str, Any] = {"dtype": "auto", "experts_implementation": "eager", "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(path, **settings)  # pyright: ignore[reportGeneralTypeIssues]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


@pytest.fixture(scope="session")
def load() -> Callable[[Path], PreTrainedModel]:
    return load_cleanly


def state(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors checkpoint through the safetensors library."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def state_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return state


@pytest.fixture
def layers_of() -> Callable[[Path], Layers]:
    return Layers


@pytest.fixture
def free_maps() -> FreeMaps:
    return FreeMaps()


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., None]:
    """Run gqa-convert, which must refuse with exactly this message, and check that it left no trace."""

    def tree(path: Path) -> dict[str, bytes]:
        return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}

    def run(*arguments: object, says: str) -> None:
        before = tree(tmp_path)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2, (result.output, result.exception)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert says in result.stderr
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr
        assert tree(tmp_path) == before

    return run
