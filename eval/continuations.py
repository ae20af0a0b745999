"""What checkpoints go on to write after the same prompts: quality as it is read, where a perplexity says too little."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gqa.convert.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Say = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A prompt, and the likeliest token after it again and again; of encoder-decoders the target of the prompt."""

    prompt: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self)


def read_prompts(prompts: Sequence[str]) -> list[str]:
    """Texts as they are, and the lines of files; empty lines are left out.

    Raises:
        UserError: a file is not UTF-8 text or has no line, or a prompt is empty.
    """
    found = []
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty; write a text, or name a file with one a line")
        found += _lines(Path(prompt)) if _is_file(prompt) else [prompt]
    return found


def check_prompts(
    prompts: Sequence[str],
    new_tokens: int,
    tokenizer: "PreTrainedTokenizerBase",
    config: "PreTrainedConfig",
    checkpoint: Path,
) -> None:
    """Refuse prompts that the checkpoint can't continue.

    Raises:
        UserError: one has no tokens, or is too long for the model with what follows.
    """
    positions = getattr(config, "max_position_embeddings", None)
    for text in read_prompts(prompts):
        length = len(tokenizer(text, verbose=False)["input_ids"])
        if length == 0:
            raise UserError(f"the prompt {text!r} has no tokens; use a longer one")
        # An encoder-decoder has positions for its source and for its target.
        longest = max(length, new_tokens) if config.is_encoder_decoder else length + new_tokens
        if positions is not None and longest > positions:
            raise UserError(
                f"a prompt of {length} tokens and {new_tokens} new ones are more than the {positions} positions of "
                f"{checkpoint}; shorten it, or ask for fewer with --new-tokens"
            )


def continue_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    new_tokens: int,
    progress: Say = lambda *_: None,
) -> tuple[Continuation, ...]:
    """Continue every prompt greedily by at most `new_tokens` tokens, up to the end of the text."""
    from transformers import GenerationConfig

    texts, found = read_prompts(prompts), []
    own = model.generation_config
    greedy = _greedy(own or GenerationConfig(), model.config, tokenizer, new_tokens)
    try:
        model.generation_config = GenerationConfig()  # its own would fill in what ours leaves open
        for number, text in enumerate(texts):
            progress("continuing prompts", number, len(texts))
            found.append(Continuation(prompt=text, text=_continue(model, tokenizer, text, greedy)))
    finally:
        model.generation_config = own
    return tuple(found)


def _greedy(
    own: "GenerationConfig", config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase", new_tokens: int
) -> "GenerationConfig":
    """The likeliest token every time; of the model's own settings only what a target begins with and what ends it."""
    from transformers import GenerationConfig

    start = getattr(config, "decoder_start_token_id", None)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        bos_token_id=own.bos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        decoder_start_token_id=own.decoder_start_token_id if start is None else start,
        forced_bos_token_id=own.forced_bos_token_id if config.is_encoder_decoder else None,  # mBART's language
    )


def _continue(model: Any, tokenizer: Any, text: str, greedy: Any) -> str:
    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)[0]
    new = made if model.config.is_encoder_decoder else made[ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def _is_file(prompt: str) -> bool:
    try:
        return Path(prompt).is_file()
    except OSError:  # a text that is too long for a name
        return False


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; prompts are read as one a line") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path} has no line with a prompt; write one a line")
    return found
