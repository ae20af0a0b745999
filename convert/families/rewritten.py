"""Model types whose class has no KV heads, with those that they become; `convert/rewrites/` says how."""

from typing import NamedTuple


class Rewritten(NamedTuple):
    """What a user wants to know of one."""

    known_as: str
    """checkpoints of it"""
    becomes: tuple[str, ...] = ()
    """the model types of transformers' classes that hold it afterwards, of which its configuration chooses one"""
    own: str | None = None
    """the model type of a class of ours that holds it with any number of KV heads, where none of those does"""
    own_code: bool = False
    """whether its class is not transformers' own: its checkpoints bring code, which is not needed then"""
    may_bring_code: bool = False
    """whether some checkpoints bring code although transformers' class loads them without"""
    levelled: bool = False
    """whether its layers differ in their KV heads, and all that is done is to repeat them"""


REWRITTEN: dict[str, Rewritten] = {
    "baichuan": Rewritten("Baichuan 7B, Baichuan 2 7B", ("llama",), own_code=True),
    "bart": Rewritten("BART", own="gqa_bart"),
    "bloom": Rewritten("BLOOM, BLOOMZ", own="gqa_bloom"),
    "codegen": Rewritten("CodeGen", ("phi",)),
    "deci": Rewritten("DeciLM 7B, DeciCoder 6B", ("llama",), own_code=True, levelled=True),
    "gpt2": Rewritten("GPT-2, DistilGPT-2, DialoGPT", ("gpt_bigcode",), own="gqa_gpt2"),
    "gpt_neo": Rewritten("GPT-Neo, TinyStories", ("gpt_bigcode",), own="gqa_gpt_neo"),
    "gpt_neox": Rewritten("GPT-NeoX-20B, Pythia, RedPajama-INCITE", ("phi", "nemotron")),
    "gptj": Rewritten("GPT-J 6B", ("phi",)),
    "internlm": Rewritten("InternLM 7B and 20B", ("llama",), own_code=True),
    "marian": Rewritten("OPUS-MT", own="gqa_marian"),
    "mbart": Rewritten("mBART, mBART-50", own="gqa_mbart"),
    "minicpm": Rewritten("MiniCPM 1B and 2B", ("llama",), own_code=True),
    "mpt": Rewritten("MPT 7B and 30B", own="gqa_mpt", may_bring_code=True),
    "mt5": Rewritten("mT5", own="gqa_mt5"),
    "opt": Rewritten("OPT, Galactica", ("gpt_bigcode",), own="gqa_opt"),
    "pegasus": Rewritten("Pegasus", own="gqa_pegasus"),
    "qwen": Rewritten("Qwen 1.8B to 72B, the first generation", ("qwen2",), own_code=True),
    "t5": Rewritten("T5, T5 1.1, FLAN-T5", own="gqa_t5"),
    "whisper": Rewritten("Whisper", own="gqa_whisper"),
    "xglm": Rewritten("XGLM", ("gpt_bigcode",)),
}
