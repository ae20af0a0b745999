"""XGLM: OPT's layers, sinusoidal positions, embeddings scaled on their way in. Becomes a GPT-BigCode."""

import math
from functools import partial

import torch
from torch import Tensor

from gqa.convert.derived import Made
from gqa.convert.errors import UserError
from gqa.convert.formulas import made
from gqa.convert.rewrites._gpt_bigcode import multi_head_config
from gqa.convert.rewrites.opt import layer, used_positions
from gqa.convert.rewriting import Config, Rewrite, Target


def _target(config: Config) -> Target:
    if config["add_cross_attention"]:
        raise UserError(
            "xglm with add_cross_attention can't be converted: no class has cross-attention with one KV head"
        )
    embedding = "embed_tokens.weight"
    scale = math.sqrt(config["d_model"]) if config["scale_embedding"] else 1.0
    positions = partial(_sinusoids, config["max_position_embeddings"], config["pad_token_id"])
    return Target(
        config=multi_head_config(
            n_embd=config["d_model"],
            n_head=config["attention_heads"],
            n_layer=config["num_layers"],
            n_positions=config["max_position_embeddings"],
            n_inner=config["ffn_dim"],
            activation_function=config["activation_function"],
            attn_pdrop=config["attention_dropout"],
            embd_pdrop=config["dropout"],
            resid_pdrop=config["dropout"],
            initializer_range=config["init_std"],
            tie_word_embeddings=False,  # going in they are scaled, coming out they are not
        ),
        outside={
            "transformer.wte.weight": Made(lambda table: table * scale, (embedding,), by_rows=True),
            "transformer.wpe.weight": made(positions, embedding),
            "transformer.ln_f.weight": "layer_norm.weight",
            "transformer.ln_f.bias": "layer_norm.bias",
            "lm_head.weight": embedding if config["tie_word_embeddings"] else "lm_head.weight",
        },
        layer_prefix="transformer.h.{layer}.",
        layer=lambda _: layer(config["attention_heads"]),
    )


def _sinusoids(positions: int, padding: int, embedding: Tensor) -> Tensor:
    """Fairseq's table: sines, then cosines, of frequencies from 1 to 1/10000. [positions, hidden_size].

    Args:
        positions: rows.
        padding: the padding token's id, whose row of the table, before the unused ones are cut off, is zero.
        embedding: a tensor of the width and dtype wanted. [vocabulary, hidden_size]
    """
    half = embedding.shape[1] // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(positions + 2).float()[:, None] * frequencies
    table = torch.zeros(positions + 2, embedding.shape[1])
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1)
    table[padding] = 0
    return used_positions(table).to(embedding)


REWRITE = Rewrite(
    model_type="xglm",
    base_prefix="model.",
    layer_prefix="layers.{layer}.",
    num_layers="num_layers",
    computed=("embed_positions.weights",),
    defaults={
        "vocab_size": 256008,
        "max_position_embeddings": 2048,
        "d_model": 1024,
        "ffn_dim": 4096,
        "num_layers": 24,
        "attention_heads": 16,
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "init_std": 0.02,
        "scale_embedding": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    target=_target,
)
