"""The checkpoints that engines are given: what `gqa-convert` makes of two small models that have learnt to write code.

A llama, which also becomes a deepseek_v3 with a latent, and a GPT-NeoX with layers like Pythia's, which becomes phi.
Both are trained here from nothing in about a minute. Their rotary bases are no defaults, so an engine that loses the
value on its way shows at once.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.directory import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,  # of 32 components: ONNX Runtime's kernel wants a multiple of 16
    "max_position_embeddings": 512,
}
LLAMA: dict[str, Any] = {
    "intermediate_size": 352,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 54321.0},
    "tie_word_embeddings": True,
}
NEOX: dict[str, Any] = {
    "intermediate_size": 512,
    "rotary_pct": 0.5,
    "rotary_emb_base": 25000,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
TRAINING: dict[str, Any] = {
    "max_steps": 250,
    "sequence_length": 256,
    "batch_tokens": 2048,
    "learning_rate": 5e-3,
    "weight_decay": 0.0,
    "validation_tokens": 2048,
    "teacher": "none",
    "dtype": "bfloat16",
    "quiet": True,
}


def make_checkpoints(work: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Convert both models at two numbers of KV heads, and the llama to a latent.

    What stands in `work` already is taken as it is.

    Returns:
        The directories by the names that the matrix gives them; a name begins with the model type.
    """
    made: dict[str, Path] = {}
    for name, becomes in (("llama", "llama"), ("gpt_neox", "phi")):
        source = trained(name, work, say)
        for groups in (2, 1):
            output = work / f"{becomes}-gqa{groups}"
            made[f"{becomes}, 4 heads to {groups}"] = converted(source, output, groups, say)
        if becomes == "llama":
            made["deepseek_v3, 4 heads to a latent"] = latent(source, work, say)
    return made


def latent(source: Path, work: Path, say: Callable[[str], None]) -> Path:
    """`source` with half of its cache as a latent, in the class that engines know."""
    from gqa.recipes.demo.corpus import TRAIN

    output = work / "deepseek_v3-mla"
    if not output.exists():
        say(f"converting {source.name} to a latent")
        command = [sys.executable, "-m", "gqa.convert", str(source), "-o", str(output), "--to", "mla", "-q"]
        text = ["--calibration", str(work / "corpus" / TRAIN), "--calibration-tokens", "8192"]
        subprocess.run([*command, "--model-type", "deepseek_v3", "--kv-budget", "0.5", *text], check=True)
    return output


def converted(source: Path, output: Path, groups: int, say: Callable[[str], None]) -> Path:
    """`source` with `groups` KV heads, by the method that rewrites q, k, v and o, as the command makes it."""
    if not output.exists():
        say(f"converting {source.name} to {groups} KV heads")
        command = [sys.executable, "-m", "gqa.convert", str(source), "-o", str(output), "-g", str(groups), "-q"]
        subprocess.run([*command, "--method", "lowrank"], check=True)
    return output


def trained(name: str, work: Path, say: Callable[[str], None]) -> Path:
    """A small model of this type, trained from nothing on the source of Python's standard library."""
    from gqa.recipes.demo.corpus import TRAIN, write_corpus
    from gqa.recipes.demo.scratch import write_random_checkpoint
    from gqa.uptrain import UptrainConfig, uptrain

    output, initial, corpus = work / name, work / f"{name}-random", work / "corpus"
    if output.exists():
        return output
    say(f"training a {name}")
    if not corpus.exists():
        with atomic_directory(corpus) as directory:
            write_corpus(directory)
    with atomic_directory(initial, overwrite=True) as directory:
        write_random_checkpoint(directory, corpus / TRAIN, configuration(name))
    folders: dict[str, Any] = {"cache_dir": work / "tokens", "run_dir": work / f"{name}-run"}
    settings = UptrainConfig(checkpoint=str(initial), data=str(corpus / TRAIN), output=output, **folders, **TRAINING)
    uptrain(settings)
    return output


def configuration(name: str) -> "PreTrainedConfig":
    """The model's own."""
    from transformers import AutoConfig

    from gqa.recipes.demo.scratch import SPECIAL_TOKENS

    return AutoConfig.for_model(name, **SIZES, **{"llama": LLAMA, "gpt_neox": NEOX}[name], **SPECIAL_TOKENS)
