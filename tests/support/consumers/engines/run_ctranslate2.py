"""CTranslate2: its own converter, its own file, tokens as strings; it leaves the text to transformers' tokenizer."""

import json
from collections.abc import Iterator
from pathlib import Path

import ctranslate2  # pyright: ignore[reportMissingImports] - in the engine's environment
import numpy as np
from ctranslate2.converters import TransformersConverter  # pyright: ignore[reportMissingImports]
from transformers import AutoTokenizer

from consumers.answering import Answer, answer_all


def ask(checkpoint: Path, work: Path, prompts: list[str], steps: int) -> Iterator[Answer]:
    """As `ct2-transformers-converter --quantization float32` does."""
    TransformersConverter(str(checkpoint)).convert(str(work / "model"), quantization="float32")
    name_every_token(work / "model" / "config.json")
    generator = ctranslate2.Generator(str(work / "model"), compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for prompt in prompts:
        words = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
        (result,) = generator.generate_batch([words], max_length=steps, sampling_topk=1, include_prompt_in_result=False)
        whole = words + result.sequences[0]
        scores = np.array(generator.forward_batch([whole[:-1]]))[0, len(words) - 1 :]  # [steps, vocab]
        yield Answer(
            tokens=tokenizer.convert_tokens_to_ids(words),
            continuation=result.sequences_ids[0],
            scores=scores.tolist(),
        )


def name_every_token(file: Path) -> None:
    """Its converter writes null for a special token that the tokenizer lacks, and its engine then can't read that."""
    config = json.loads(file.read_text(encoding="utf-8"))
    nameless = [f"{kind}_token" for kind in ("bos", "unk") if config.get(f"{kind}_token") is None]
    file.write_text(json.dumps(config | dict.fromkeys(nameless, config["eos_token"])), encoding="utf-8")


if __name__ == "__main__":
    answer_all(ask, "ctranslate2")
