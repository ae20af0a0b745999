"""Options of what is learnt: they decide the trained weights."""

from dataclasses import dataclass
from typing import Literal

Divergence = Literal["forward", "reverse", "jensen-shannon"]


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Sequences, batches, the budget, the teacher, the optimizer and the arithmetic."""

    sequence_length: int | None = None
    """Tokens in a sequence; for encoder-decoders in a source, longer ones being cut [default: 2048, or the model's
    longest if that is shorter]."""

    target_length: int | None = None
    """Tokens in a target of an encoder-decoder's pairs, longer ones being cut [default: sequence_length]."""

    batch_size: int | None = None
    """Sequences in one optimizer step, over all processes [default: 32, unless batch_tokens is given]."""

    batch_tokens: int | None = None
    """The same in tokens: a multiple of sequence_length."""

    micro_batch_size: int | None = None
    """At most so many sequences pass through a process at once; gradients accumulate [default: its whole share]."""

    max_tokens: int | None = None
    """Budget: train on so many tokens, rounded up to whole steps. Of encoder-decoders sources and targets count,
    padding does not."""

    max_steps: int | None = None
    """Budget: train for so many steps."""

    alpha: float | None = None
    """Budget: this share of pretraining_tokens (the paper's alpha; 0.05 there)."""

    pretraining_tokens: int | None = None
    """Tokens the original model was pretrained on; needed by alpha. Counted as here: of T5's 1e12 tokens, which are
    sources, the targets are another 2.2e11."""

    teacher: str = "auto"
    """What the model learns from beside the text. auto: the parent that gqa.json names, if it is still there, otherwise
    none; none: the text alone, by cross-entropy, as in the paper; or a checkpoint with the same vocabulary."""

    divergence: Divergence = "forward"
    """How far from the teacher a model is: forward or reverse KL, or Jensen-Shannon."""

    temperature: float = 1.0
    """Divides the logits of both; the divergence is multiplied by its square, as is usual."""

    ce_weight: float = 0.0
    """Share of cross-entropy in the loss where there is a teacher; the divergence has the rest."""

    attention_weight: float = 0.0
    """Weight, at the start, of the mean squared difference between the attention outputs of model and teacher, layer by
    layer; it falls linearly to 0 over the run. Decoders only."""

    offline_teacher: bool = False
    """Learn from what `gqa-uptrain cache-teacher` wrote with the same options, and leave the teacher on disk."""

    teacher_draws: int = 64
    """Tokens that cache-teacher draws from the teacher's distribution at every place."""

    train: Literal["all", "attention", "kv"] = "all"
    """What is trained: everything, the attention of every layer, or only keys and values; the rest stays as it is."""

    kv_lr_multiplier: float = 1.0
    """Keys and values learn at so many times the learning rate; where q, k and v are one tensor, as in Phi-3, only with
    --train kv."""

    freeze_embeddings: bool = False
    """Leave the token embeddings as they are, and with them the output projection where that is the same tensor."""

    learning_rate: float = 1e-4
    """Peak learning rate."""

    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warmup, cosine falls all the way; wsd (warmup, stable, decay) holds, then falls linearly."""

    warmup_ratio: float = 0.02
    """Share of the steps in which the learning rate rises linearly from 0."""

    decay_ratio: float = 0.2
    """Share of the steps in which wsd falls."""

    min_lr_ratio: float = 0.1
    """The last step's learning rate, as a share of the peak."""

    weight_decay: float = 0.1
    """AdamW's decay, on matrices only: biases and norms are left alone."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""

    eps: float = 1e-8
    """AdamW's epsilon."""

    clip: float = 1.0
    """Largest norm of a step's gradient; 0 turns clipping off. A run that goes on may take another."""

    spike_sigmas: float = 6.0
    """Leave out a step whose loss or gradient norm is so many standard deviations above the mean of the last 128 steps;
    0 leaves out only what is not finite. A run that goes on may take another."""

    seed: int = 0
    """Decides the order of the data (and dropout, if the model has any); below 2**32."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of forward and backward; weights stay in float32. auto: bfloat16 where the device has it."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. auto: what transformers picks."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter slower."""

    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run."""
