"""Latent attention as llama.cpp has it: DeepSeek's, with keys and values taken apart, and queries of low rank.

Its engine reads keys' and values' maps out of the latent one after the other, so that queries take on the one and the
sums of latents the other: what is cached is all that attention touches. It knows no queries but those of low rank, with
a norm within, but for some numbers of layers, where it knows no others. What enters attention has a norm behind it
already, whose weight is undone: so at full rank that norm divides by one.
"""

from typing import TYPE_CHECKING

import torch

from gqa.convert.errors import UserError
from gqa.convert.export.piece import Piece, stored_dtype

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

    from gqa.convert.export.options import ExportOptions

MODEL_TYPE = "deepseek_v3"


def has_plain_queries(config: "PreTrainedConfig") -> bool:
    """Whether llama.cpp takes it, by its sizes, for one of the models whose queries are not of low rank."""
    layers = config.num_hidden_layers
    return layers in (26, 27) or (layers, config.vocab_size) == (48, 128256)


def check_dense(config: "PreTrainedConfig") -> None:
    """Refuse a model that has experts, or queries of low rank.

    Raises:
        UserError: it is not what gqa-convert makes.
    """
    if config.first_k_dense_replace < config.num_hidden_layers or config.q_lora_rank or config.attention_bias:
        raise UserError(
            "of deepseek_v3 only what gqa-convert --to mla makes is exported, without experts; llama.cpp's own "
            "convert_hf_to_gguf.py reads the others"
        )


def describe_latent(writer: "GGUFWriter", config: "PreTrainedConfig") -> None:
    """Write the sizes of attention, and that there are no experts."""
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_leading_dense_block_count(config.num_hidden_layers)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    if not has_plain_queries(config):
        writer.add_q_lora_rank(config.hidden_size)


def latent_pieces(piece: Piece, config: "PreTrainedConfig", options: "ExportOptions") -> list[Piece]:
    """What becomes of a tensor of the checkpoint."""
    stem, _, name = piece.name.rpartition("layers.")[2].partition(".")[2].rpartition(".")
    if stem == "self_attn.kv_b_proj":
        return _apart(piece, config)
    if has_plain_queries(config):
        return [piece]
    if stem == "self_attn.q_proj":
        return [piece.renamed("q_proj", "q_b_proj")]
    if stem == "input_layernorm" and name == "weight":
        return [piece, *_undone(piece, options)]
    return [piece]


def _apart(piece: Piece, config: "PreTrainedConfig") -> list[Piece]:
    """kv_b_proj, [heads * (still + head_dim), rank], as [heads, rank, still] and [heads, head_dim, rank]."""
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    sizes = [config.qk_nope_head_dim, config.v_head_dim]

    def keys(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(heads, -1, rank).split(sizes, dim=1)[0].transpose(1, 2)

    def values(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(heads, -1, rank).split(sizes, dim=1)[1]

    return [
        piece.made("kv_b_proj", "k_b_proj", (heads, rank, sizes[0]), keys),
        piece.made("kv_b_proj", "v_b_proj", (heads, sizes[1], rank), values),
    ]


def _undone(piece: Piece, options: "ExportOptions") -> list[Piece]:
    """The norm's weight taken back, and put on again behind the norm of the queries: as exact as its type allows."""
    (size,) = piece.shape
    dtype = stored_dtype(piece.entry, (size, size), options)

    def inverse(weight: torch.Tensor) -> torch.Tensor:
        found = (1 / weight.float()).to(dtype)
        if not (found.isfinite() & (found != 0)).all():
            raise UserError(
                f"{piece.source} has zeros, or what is too near or far for {str(dtype).removeprefix('torch.')}, where "
                "llama.cpp's queries need a norm that can be undone"
            )
        return found

    return [
        piece.made("input_layernorm", "self_attn.q_a_proj", (size, size), lambda weight: inverse(weight).diag()),
        piece.made("input_layernorm", "self_attn.q_a_layernorm", (size,), lambda weight: 1 / inverse(weight).float()),
    ]
