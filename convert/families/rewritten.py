"""Model types whose class has no KV heads, with those that they become; `convert/rewrites/` says how."""

REWRITTEN: dict[str, tuple[str, ...]] = {
    "codegen": ("phi",),
    "gpt2": ("gpt_bigcode",),
    "gpt_neo": ("gpt_bigcode",),
    "gpt_neox": ("phi", "nemotron"),
    "gptj": ("phi",),
    "opt": ("gpt_bigcode",),
    "xglm": ("gpt_bigcode",),
}
