"""The tokenizer in a GGUF file: tokens, merges, special tokens, chat template, and how text is cut into words.

llama.cpp has a name for each way of cutting that it knows. Its own converter finds the name by a hash of what a
published tokenizer makes of a text, so it knows no others; here it is read from the rule in tokenizer.json.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError
from gqa.convert.pretrained import damage
from gqa.convert.source import read_object

if TYPE_CHECKING:
    from gguf import GGUFWriter

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES = {
    _CASELESS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CASELESS + r"\p{N}" + _REST: "qwen2",
}
"""llama.cpp's names of the regular expressions that tokenizer.json splits by; GPT-2's own is none of them"""


def add_vocabulary(writer: "GGUFWriter", checkpoint: Path, size: int, pre: str | None) -> None:
    """Write the checkpoint's tokenizer.

    Args:
        size: rows of the embedding; tokens that the tokenizer lacks are marked as unused.
        pre: llama.cpp's name for the way in which words are cut; None: by tokenizer.json.

    Raises:
        UserError: there is no tokenizer, its files are damaged, or llama.cpp has no name for what it does.
    """
    from gguf import SpecialVocab

    described = checkpoint / "tokenizer.json"
    if (checkpoint / "tokenizer.model").is_file():
        _add_sentencepiece(writer, checkpoint, size)
        merges = False
    elif described.is_file():
        _add_bytes(writer, read_object(described), described, size, pre)
        merges = True
    else:
        raise UserError(f"{checkpoint} has no tokenizer.json or tokenizer.model, which a GGUF file must hold")
    settings = checkpoint / "tokenizer_config.json"
    if settings.is_file():
        read_object(settings)  # so that an error names it
    with damage(f"what {checkpoint} says of its special tokens and chat template can't be used"):
        SpecialVocab(checkpoint, load_merges=merges, n_vocab=size).add_to_gguf(writer, quiet=True)


def _add_sentencepiece(writer: "GGUFWriter", checkpoint: Path, size: int) -> None:
    from gguf import SentencePieceVocab, TokenType

    with damage(f"the tokenizer.model or added_tokens.json of {checkpoint} can't be used"):
        found = list(SentencePieceVocab(checkpoint).all_tokens())[:size]
    found += [(f"[PAD{index}]".encode(), -1000.0, TokenType.UNUSED) for index in range(len(found), size)]
    tokens, scores, kinds = zip(*found, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(kinds))


def _add_bytes(writer: "GGUFWriter", tokenizer: dict[str, Any], file: Path, size: int, pre: str | None) -> None:
    """A byte-level BPE, as GPT-2, GPT-NeoX, Qwen and Llama 3 have."""
    with damage(f"{file} is damaged, restore it"):
        model = tokenizer["model"]
        fits = model.get("type") == "BPE" and not model.get("byte_fallback")
    if not fits:
        raise UserError(f"{file} is no byte-level BPE; with its tokenizer.model beside it, it can be exported")
    pre = pre or word_rule(tokenizer, file)
    with damage(f"{file} is damaged, restore it"):
        tokens, kinds = _tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token and its kind."""
    from gguf import TokenType

    texts = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or ()}
    texts |= {index: token["content"] for index, token in added.items()}
    kinds = {index: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for index, token in added.items()}
    usual = [TokenType.NORMAL if index in texts else TokenType.UNUSED for index in range(size)]
    return (
        [texts.get(index, f"[PAD{index}]") for index in range(size)],
        [kinds.get(index, kind) for index, kind in enumerate(usual)],
    )


def word_rule(tokenizer: dict[str, Any], file: Path) -> str:
    """llama.cpp's name for the way in which tokenizer.json cuts words.

    Raises:
        UserError: it has none that is known here.
    """
    with damage(f"{file} is damaged, restore it"):
        found = _word_rule(tokenizer)
    if found is None:
        raise UserError(
            f"{file} cuts text into words in a way that is not known here; give llama.cpp's name for it with --pre "
            "(gpt-2, llama-bpe, qwen2, ...)"
        )
    return found


def _word_rule(tokenizer: dict[str, Any]) -> str | None:
    rule, normalizer = tokenizer.get("pre_tokenizer") or {}, tokenizer.get("normalizer") or {}
    parts = rule.get("pretokenizers", [rule])
    last, patterns = parts[-1], [part.get("pattern", {}).get("Regex") for part in parts[:-1]]
    bytes_last = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if bytes_last and normalizer.get("type", "NFC") == "NFC":
        if not patterns and last.get("use_regex", True):
            return "gpt-2"
        if len(patterns) == 1 and patterns[0] in RULES and not last.get("use_regex", True):
            return RULES[patterns[0]]
    return None
