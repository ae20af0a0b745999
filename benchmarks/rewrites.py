"""How near a rewrite comes to what it rewrites: the largest difference of logits, as a share of the largest logit.

    python benchmarks/rewrites.py

Models are tiny and random, every parameter of them; the table is that of the README.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from gqa.convert.modeling import register
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert

HEADS, VOCABULARY = 8, 96
_GPT = {"n_embd": 128, "n_layer": 4, "n_head": HEADS}
_NEOX = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": HEADS}
_OPT = {"hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 4, "num_attention_heads": HEADS}
_NEO = {"hidden_size": 128, "num_layers": 4, "num_heads": HEADS, "attention_types": [[["global", "local"], 2]]}
_XGLM = {"d_model": 128, "ffn_dim": 256, "num_layers": 4, "attention_heads": HEADS}

_BLOOM = {"hidden_size": 128, "n_layer": 4, "n_head": HEADS}
_MPT = {"d_model": 128, "n_layers": 4, "n_heads": HEADS}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, parallel residual": ("gpt_neox", _NEOX),
    "gpt_neox, sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 8}),
    "codegen": ("codegen", {**_GPT, "rotary_dim": 8}),
    "gpt2": ("gpt2", _GPT),
    "opt": ("opt", {**_OPT, "word_embed_proj_dim": 128}),
    "gpt_neo, within its window": ("gpt_neo", {**_NEO, "max_position_embeddings": 256}),
    "xglm": ("xglm", _XGLM),
}
OWN_CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2, own code": ("gpt2", _GPT),
    "opt, own code": ("opt", {**_OPT, "word_embed_proj_dim": 128}),
    "opt as 350m, own code": ("opt", {**_OPT, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "gpt_neo, own code": ("gpt_neo", {**_NEO, "window_size": 32}),
    "bloom, own code": ("bloom", _BLOOM),
    "mpt, own code": ("mpt", _MPT),
}


def random_model(model_type: str, extra: dict[str, Any], dtype: torch.dtype) -> Any:
    """The family's own class, norms and biases random too."""
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **extra, **tokens), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.7 * (parameter.ndim == 1))
    return model.eval()


@torch.no_grad()
def difference(model: Any, folder: Path, *, keep: bool) -> tuple[str, float]:
    """What the model becomes, and how far its logits move, as a share of the largest."""
    model.save_pretrained(folder / "original")
    convert(folder / "original", folder / "rewritten", ConvertOptions(groups=HEADS, keep_architecture=keep))
    register()
    rewritten = AutoModelForCausalLM.from_pretrained(folder / "rewritten", dtype="auto").eval()
    ids = torch.randint(3, VOCABULARY, (4, 128), generator=torch.Generator().manual_seed(1))
    before, after = model(ids).logits, rewritten(ids).logits
    return rewritten.config.model_type, ((after - before).abs().max() / before.abs().max()).item()


def rows() -> Iterator[tuple[str, ...]]:
    """Family, what it becomes, and the differences in double and single precision."""
    for name, (model_type, extra) in (FAMILIES | OWN_CODE).items():
        found: list[str] = []
        target = ""
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float64 and model_type == "xglm":  # does not run in double precision
                found.append("-")
                continue
            with tempfile.TemporaryDirectory() as folder:
                target, off = difference(random_model(model_type, extra, dtype), Path(folder), keep=name in OWN_CODE)
            found.append(f"{off:.0e}" if off else "0")
        yield name, target, *found


def main() -> None:
    quiet_transformers()
    table = Table(
        title="Largest difference of logits after a rewrite, as a share of the largest logit", title_justify="left"
    )
    for column in ("family", "becomes", "float64", "float32"):
        table.add_column(column)
    for row in rows():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
