"""Tiny encoder-decoders, stock and with shared heads, that compute the same."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel

from gqa.convert.rewriting import rewrite_of

VOCABULARY, SOURCE, TARGET = 96, 9, 6


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """One shape of one family."""

    name: str
    model_type: str
    heads: tuple[int, int]
    """query heads of the encoder and of the decoder"""
    head_dim: int
    """of the decoder"""
    extra: dict[str, Any]
    randomised: Callable[..., PreTrainedModel] | None = None
    """what makes every parameter of a model random; fixtures fill it in"""

    def stock(self, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        """transformers' own model in float64, every parameter random."""
        config = AutoConfig.for_model(self.model_type, **(self.extra | overrides))
        auto = AutoModelForSpeechSeq2Seq if self.model_type == "whisper" else AutoModelForSeq2SeqLM
        return self._random(auto.from_config(config, dtype=torch.float64), seed)

    def ours(self, groups: int | None, encoder: int | None = None, *, seed: int = 0, **overrides: Any) -> Any:
        """Our model with so many KV heads in the decoder and in the encoder, None for all; the same otherwise."""
        shared = {"num_key_value_heads": groups, "encoder_num_key_value_heads": encoder}
        config = self.classes["AutoConfig"](**(self.extra | shared | overrides))
        model = self.classes[self.auto]._from_config(config, dtype=torch.float64)
        return self._random(model, seed)

    @property
    def classes(self) -> dict[str, Any]:
        """Ours, by the names of the Auto classes."""
        return importlib.import_module(f"gqa.convert.modeling.{self.model_type}").AUTO

    @property
    def auto(self) -> str:
        """The name of the Auto class of the whole model."""
        return "AutoModelForSpeechSeq2Seq" if self.model_type == "whisper" else "AutoModelForSeq2SeqLM"

    def _random(self, model: Any, seed: int) -> Any:
        assert self.randomised is not None
        fixed = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
        self.randomised(model, seed)
        model.load_state_dict(fixed, strict=False)  # sines, which no file has
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(seed)))
        return model

    def equal(self) -> tuple[PreTrainedModel, Any]:
        """The stock model, and ours with all of its heads."""
        stock, ours = self.stock(), self.ours(None)
        ours.load_state_dict(self.renamed(stock.state_dict()))
        return stock, ours

    def tied(self, groups: int, encoder: int | None = None) -> tuple[PreTrainedModel, Any]:
        """The stock model whose heads are the same inside every group, and ours, which has them once."""
        stock, ours = self.stock(), self.ours(groups, encoder)
        shapes = {name: tensor.shape for name, tensor in self.renamed(stock.state_dict()).items()}
        large = {name: self._repeated(name, tensor, shapes[name]) for name, tensor in ours.state_dict().items()}
        originals = dict(zip(shapes, stock.state_dict(), strict=True))
        stock.load_state_dict({originals[name]: tensor for name, tensor in large.items()})
        return stock, ours

    def renamed(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """A stock state dict by the names of our classes."""
        rewrite: Any = rewrite_of(self.model_type)
        return rewrite.tensors({}, state)

    def _repeated(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Every KV head once for each query head that reads it."""
        if tensor.shape == shape:
            return tensor
        heads = self.heads["decoder" in name]
        head_dim = shape[0] // heads
        return tensor.unflatten(0, (-1, head_dim)).repeat_interleave(shape[0] // len(tensor), dim=0).flatten(0, 1)

    def inputs(self, *, padded: bool = True) -> dict[str, Tensor]:
        """Two sources, the second shorter where text is padded; of Whisper two sounds, which never are."""
        generator = torch.Generator().manual_seed(7)
        if self.model_type == "whisper":
            return {"input_features": torch.randn(2, 8, 40, generator=generator, dtype=torch.float64)}
        ids = torch.randint(3, VOCABULARY, (2, SOURCE), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[1, :4] = 0  # on the left, where nothing that counts positions of the mask hides a fault
        return {"input_ids": ids, "attention_mask": mask}

    def target(self) -> Tensor:
        """What the decoder reads. [2, 6]."""
        return torch.randint(3, VOCABULARY, (2, TARGET), generator=torch.Generator().manual_seed(8))


def _variant(name: str, heads: tuple[int, int], head_dim: int, /, **extra: Any) -> EncoderDecoder:
    return EncoderDecoder(name=name, model_type=name.partition("-")[0], heads=heads, head_dim=head_dim, extra=extra)


_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 0}
_T5 = {"d_model": 48, "d_kv": 10, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, **_COMMON}
_BART = {
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    **_COMMON,
}
_APART = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 97, "tie_word_embeddings": False}
_SOUND = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32, "begin_suppress_tokens": None}

MODELS = [
    _variant("t5", (4, 4), 10, **_T5),
    _variant("t5-gated", (4, 4), 10, **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    _variant("mt5", (4, 4), 10, **_T5),
    _variant("bart", (2, 4), 12, **_BART),
    _variant("mbart", (2, 4), 12, **_BART, scale_embedding=True),
    _variant("marian", (2, 4), 12, **_BART),
    _variant("marian-apart", (2, 4), 12, **{**_BART, **_APART}),
    _variant("pegasus", (2, 4), 12, **_BART),
    _variant("whisper", (2, 4), 12, **_BART, **_SOUND),
]


@pytest.fixture(params=MODELS, ids=lambda variant: variant.name)
def seq2seq(request, randomised: Callable[..., PreTrainedModel]) -> EncoderDecoder:
    """Every family in each of its shapes."""
    return replace(request.param, randomised=randomised)


@pytest.fixture
def seq2seq_named(randomised: Callable[..., PreTrainedModel]) -> Callable[[str], EncoderDecoder]:
    """A shape by its name."""
    return lambda name: replace(next(model for model in MODELS if model.name == name), randomised=randomised)


@pytest.fixture
def seq2seq_checkpoint(seq2seq: EncoderDecoder, tmp_path: Path) -> Path:
    """A stock checkpoint of every family on disk, in float32."""
    seq2seq.stock().float().save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"
