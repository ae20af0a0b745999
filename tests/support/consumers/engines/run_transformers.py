"""transformers, of any version: the reference in the project's environment, a consumer in another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from consumers.answering import Answer, answer_all


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """Load as a user does, which must give the dtype that the weights have; compute in float32."""
    del work
    stored = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype="auto").dtype
    if stored != torch.bfloat16:
        raise ValueError(f"loads as {stored}, and the weights are torch.bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    for prompt in prompts:
        tokens = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([tokens])
        with torch.no_grad():
            whole = model.generate(ids, attention_mask=ids >= 0, max_new_tokens=steps, do_sample=False)
            scores = model(whole[:, :-1]).logits[0, len(tokens) - 1 :]  # [steps, vocab]
        yield Answer(tokens=tokens, continuation=whole[0, len(tokens) :].tolist(), scores=scores.tolist())


if __name__ == "__main__":
    answer_all(ask, "transformers")
