"""How near a rewrite comes to what it rewrites: the largest difference of logits, as a share of the largest logit.

    python benchmarks/rewrites.py

Models are tiny and random, every parameter of them; the differences are those of the README's table. Beside them stand
the KV-cache bytes of a token in float32, read out of a real cache: of the original, and with a quarter of its heads or,
where the class has no other number, one. An encoder-decoder caches the target's and the source's tokens.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from gqa.convert.modeling import register
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.rewrite import convert
from gqa.eval.cache import cache_size

HEADS, VOCABULARY = 8, 96
_GPT = {"n_embd": 128, "n_layer": 4, "n_head": HEADS}
_NEOX = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": HEADS}
_OPT = {"hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 4, "num_attention_heads": HEADS}
_NEO = {"hidden_size": 128, "num_layers": 4, "num_heads": HEADS, "attention_types": [[["global", "local"], 2]]}
_XGLM = {"d_model": 128, "ffn_dim": 256, "num_layers": 4, "attention_heads": HEADS}

_BLOOM = {"hidden_size": 128, "n_layer": 4, "n_head": HEADS}
_MPT = {"d_model": 128, "n_layers": 4, "n_heads": HEADS}
_FALCON = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": HEADS}
_T5 = {"d_model": 128, "d_kv": 16, "d_ff": 256, "num_layers": 4, "num_heads": HEADS}
_BART = {
    **{f"{part}_layers": 4 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": HEADS for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 256 for part in ("encoder", "decoder")},
    "d_model": 128,
    "decoder_start_token_id": 0,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, parallel residual": ("gpt_neox", _NEOX),
    "gpt_neox, sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 8}),
    "codegen": ("codegen", {**_GPT, "rotary_dim": 8}),
    "gpt2": ("gpt2", _GPT),
    "opt": ("opt", {**_OPT, "word_embed_proj_dim": 128}),
    "gpt_neo, within its window": ("gpt_neo", {**_NEO, "max_position_embeddings": 256}),
    "xglm": ("xglm", _XGLM),
    "falcon, multi-head": ("falcon", {**_FALCON, "multi_query": False, "alibi": True, "parallel_attn": False}),
}
OWN_CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2, own code": ("gpt2", _GPT),
    "opt, own code": ("opt", {**_OPT, "word_embed_proj_dim": 128}),
    "opt as 350m, own code": ("opt", {**_OPT, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "gpt_neo, own code": ("gpt_neo", {**_NEO, "window_size": 32}),
    "bloom, own code": ("bloom", _BLOOM),
    "mpt, own code": ("mpt", _MPT),
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5, own code": ("t5", _T5),
    "t5 as FLAN-T5, own code": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5, own code": ("mt5", _T5),
    **{f"{name}, own code": (name, _BART) for name in ("bart", "mbart", "marian", "pegasus")},
    "whisper, own code": ("whisper", {**_BART, "max_source_positions": 32, "num_mel_bins": 8}),
}
LOADERS = {"whisper": AutoModelForSpeechSeq2Seq, **dict.fromkeys(("t5", "mt5"), AutoModelForSeq2SeqLM)}
LOADERS |= dict.fromkeys(("bart", "mbart", "marian", "pegasus"), AutoModelForSeq2SeqLM)


def random_model(model_type: str, extra: dict[str, Any], dtype: torch.dtype) -> Any:
    """The family's own class, norms and biases random too."""
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    loader = LOADERS.get(model_type, AutoModelForCausalLM)
    model = loader.from_config(AutoConfig.for_model(model_type, **extra, **tokens), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.7 * (parameter.ndim == 1))
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of random tokens, and in encoder-decoders of a random source."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (4, 128), generator=generator)
    if not model.config.is_encoder_decoder:
        return model(ids).logits
    if model.main_input_name != "input_features":
        return model(ids, decoder_input_ids=ids.flip(1)).logits
    shape = 4, model.config.num_mel_bins, 2 * model.config.max_source_positions
    return model(torch.randn(shape, generator=generator).to(model.dtype), decoder_input_ids=ids).logits


def converted(folder: Path, model_type: str, groups: int, *, keep: bool) -> Any:
    """The original in the folder with so many KV heads."""
    output = folder / f"of {groups}"
    convert(folder / "original", output, ConvertOptions(groups=groups, keep_architecture=keep))
    register()
    return LOADERS.get(model_type, AutoModelForCausalLM).from_pretrained(output, dtype="auto").eval()


def cache_bytes(model: Any) -> str:
    """Of a token; of the target's and the source's, where there are both."""
    if model.main_input_name == "input_features":
        return "-"  # its source is sound
    return " + ".join(f"{part.bytes_per_token:,.0f}" for part in cache_size(model, model.config, 64).parts)


def row(name: str, model_type: str, extra: dict[str, Any]) -> tuple[str, ...]:
    """Family, what it becomes, the differences in double and single precision, and the bytes of both caches."""
    keep, found = name in OWN_CODE, []
    become, before, after = "", "", ""
    for dtype in (torch.float64, torch.float32):
        if dtype == torch.float64 and model_type == "xglm":  # does not run in double precision
            found.append("-")
            continue
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder, model = Path(name_of_folder), random_model(model_type, extra, dtype)
            model.save_pretrained(folder / "original")
            if model_type == "falcon":  # its own class holds the result: there is nothing to rewrite
                found.append("-")
            else:
                rewritten = converted(folder, model_type, HEADS, keep=keep)
                off, largest = (logits(rewritten) - logits(model)).abs().max(), logits(model).abs().max()
                found.append(f"{off / largest:.0e}" if off else "0")
            one_only = model_type in ("falcon", "xglm") or (
                name in FAMILIES and model_type in ("gpt2", "opt", "gpt_neo")
            )
            fewer = converted(folder, model_type, 1 if one_only else HEADS // 4, keep=keep)
            become, before, after = fewer.config.model_type, cache_bytes(model), cache_bytes(fewer)
    return name, become, *found, before, after


def main() -> None:
    quiet_transformers()
    table = Table(
        title="Largest difference of logits after a rewrite, as a share of the largest logit; KV-cache bytes a token",
        title_justify="left",
    )
    for column in ("family", "becomes", "float64", "float32", "all heads", "a quarter or one"):
        table.add_column(column)
    for name, (model_type, extra) in (FAMILIES | OWN_CODE | ENCODER_DECODERS).items():
        table.add_row(*row(name, model_type, extra))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
