"""What a step of decoding takes with latent attention, as transformers' class does it and as it could be done.

Random models of one size: multi-head, grouped-query and latent, the last two with caches of the same bytes. The class
(`youtu`) keeps latents in the cache, but at every step makes keys and values of all heads of all of them: its cache is
small and its step the slowest. An absorbed step moves what makes keys into the queries and what makes values behind the
sum, as in DeepSeek-V2 (arXiv 2405.04434, section 2.1.2), and so reads the latent alone, once for all heads. That is put
in the place of the class's attention here, to see what it gives; it is checked against the class before it is timed.

    python benchmarks/mla_decode.py                            # contexts of 512 to 4096, on one core in some minutes
"""

from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM
from transformers.models.youtu.modeling_youtu import apply_rotary_pos_emb

from gqa.eval.speed.measure import read_bytes, time_decoding
from gqa.eval.speed.memory import bandwidth
from gqa.eval.speed.options import SpeedOptions

SIZE = 64
SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(heads: int, groups: int, length: int) -> Any:
    """Multi-head or grouped-query."""
    sizes: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": SIZE}
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **sizes, max_position_embeddings=length)).eval()


def latent(heads: int, cached: int, length: int) -> Any:
    """Latent attention in the shape that `gqa-convert` writes, three eighths of the cache being the rotary key."""
    rope = cached * 3 // 8
    config = YoutuConfig(
        **SHAPE,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=None,
        kv_lora_rank=cached - rope,
        qk_rope_head_dim=rope,
        qk_nope_head_dim=SIZE,
        v_head_dim=SIZE,
        rope_interleave=False,
        attention_bias=True,
        max_position_embeddings=length,
    )
    return YoutuForCausalLM(config).eval()


def absorbed(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    cache: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `YoutuAttention` computes, over the latent itself, as one KV head that all queries read."""
    batch, length, _width = hidden_states.shape
    queries = self.q_proj(hidden_states).view(batch, length, -1, self.qk_head_dim).transpose(1, 2)
    still, turning = queries.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
    found, key = self.kv_a_proj_with_mqa(hidden_states).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
    turning, key = apply_rotary_pos_emb(turning, key[:, None], *position_embeddings)
    found = self.kv_a_layernorm(found)[:, None]
    if cache is not None:
        found, key = cache.update(found, key, self.layer_idx)
    up = self.kv_b_proj.weight.view(self.num_heads, -1, self.kv_lora_rank)
    key_up, value_up = up.split([self.qk_nope_head_dim, self.v_head_dim], dim=1)
    scores = (still @ key_up) @ found.mT + turning @ key.mT  # [batch, heads, length, tokens]
    scores = scores * self.scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    mixed = scores.softmax(-1) @ found  # [batch, heads, length, rank]
    return self.o_proj((mixed @ value_up.mT).transpose(1, 2).flatten(2)), None


@torch.no_grad()
def absorbing(model: Any) -> Any:
    """The same model with absorbed attention, after a look at whether it computes the same."""
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")  # so that masks are numbers to add
    wanted = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.forward = absorbed.__get__(layer.self_attn)
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    return model


def operations(kind: str, heads: int, groups: int, cached: int, context: int) -> tuple[int, int]:
    """Multiplications and additions of one layer's attention in a step that grow with the context, and numbers read."""
    rope = cached * 3 // 8
    rank = cached - rope
    if kind == "llama":
        return 4 * heads * SIZE * context, 2 * groups * SIZE * context
    if kind == "absorbed":
        return 2 * heads * (2 * rank + rope) * context, cached * context
    made = heads * 2 * SIZE * context  # keys and values of all heads, which are written and read again
    read = cached * context + 2 * (made + heads * rope * context)
    return 2 * rank * made + 2 * heads * (2 * SIZE + rope) * context, read


def main(
    heads: Annotated[int, typer.Option(help="Query heads of 64.")] = 16,
    groups: Annotated[int, typer.Option(help="KV heads whose cache is also the latent's.")] = 2,
    context: Annotated[list[int] | None, typer.Option(help="[default: 512, 1024, 2048, 4096]")] = None,
    repeats: int = 5,
    steps: int = 4,
) -> None:
    """Time a step of every model at every context and print the table."""
    lengths = context or [512, 1024, 2048, 4096]
    longest, cached = max(lengths) + steps, 2 * groups * SIZE
    models = {
        ("multi-head", "llama", heads): llama(heads, heads, longest),
        ("grouped-query", "llama", groups): llama(heads, groups, longest),
        ("latent, the class", "youtu", groups): latent(heads, cached, longest),
        ("latent, absorbed", "absorbed", groups): absorbing(latent(heads, cached, longest)),
    }
    speed = bandwidth(torch.device("cpu"))
    shown = Table(
        "attention", "context", "ms a step", "min-max", "tokens/s", "cache", "roofline ms", "MFLOP", "numbers"
    )
    for length in lengths:
        for (name, kind, number), model in models.items():
            asked = SpeedOptions(batch=(1,), context=(length,), repeats=repeats, steps=steps)
            if kind == "absorbed":
                model.set_attn_implementation("eager")
            timing, cache = time_decoding(model, 1, length, asked, compiled=False)
            work, numbers = operations(kind, heads, number, cached, length)
            shown.add_row(
                name,
                str(length),
                f"{timing.median * 1e3:.2f}",
                f"{min(timing.seconds) * 1e3:.2f}-{max(timing.seconds) * 1e3:.2f}",
                f"{1 / timing.median:.0f}",
                f"{cache / 2**20:.2f} MiB",
                f"{(read_bytes(model) + cache) / speed * 1e3:.2f}",
                f"{work / 1e6:.1f}",
                f"{numbers:,}",
            )
    Console(width=130).print(shown)


if __name__ == "__main__":
    typer.run(main)
