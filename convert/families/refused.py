"""Model types that can't be converted, by the reason that a user should read."""

_NO_SETTING = (
    "its transformers class has no setting for the number of KV heads, so stock code could not load the result"
)
_LATENT = "its attention already caches one small latent instead of K/V heads (MLA); there are no heads to merge"
_HYBRID = "it is a hybrid: most of what it remembers is in recurrent or convolutional layers, not in K/V heads"
_NO_ATTENTION = "it is recurrent and has no attention; there are no K/V heads to merge"
_UNEQUAL = "its layers differ in their heads, and one number of KV heads for all of them would not describe the result"
_CONVOLVED = "its keys and values pass through a convolution over all of them, so heads can't be merged one by one"
_SHARED = (
    "some of its layers attend to keys and values of other layers, which a merge in one would change for the others"
)
_WRAPPER = "it is a multimodal checkpoint; convert its language model, saved on its own as {}"
_PARTS = "it is a multimodal checkpoint of several models, and its language model can't stand on its own"

_BY_REASON: dict[str, tuple[str, ...]] = {
    _NO_SETTING: (
        *("bigbird_pegasus", "blenderbot", "blenderbot-small", "mvp", "plbart"),
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("biogpt", "cpmant", "ctrl", "gpt-sw3"),
        *("gpt_neox_japanese", "hrm_text", "modernbert-decoder", "openai-gpt", "persimmon"),
        *("musicgen", "musicgen_melody", "prophetnet", "trocr", "umt5"),
        *("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
        *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
    ),
    _LATENT: (
        *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "dots3_note_text"),
        *("glm4_moe_lite", "glm_moe_dsa", "hy_v4", "hy_v4_vl", "kimi_k25", "kimi_linear", "longcat_flash"),
        *("minicpm3", "sarvam_mla", "youtu"),
    ),
    _HYBRID: (
        *("bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "lfm3", "minimax"),
        *("nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
        *("qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "zamba", "zamba2"),
    ),
    _NO_ATTENTION: ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
    _UNEQUAL: (*("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "laguna", "mimo_v2_flash"),),
    _CONVOLVED: (
        *("inkling2", "inkling2_loop", "inkling2_loop_text", "inkling2_text", "inkling_mm_model", "inkling_text"),
        "zaya",
    ),
    _SHARED: ("gemma3n", "gemma3n_text", "gemma4_assistant", "gemma4_unified_assistant"),
    _WRAPPER.format("qwen3"): ("moss_transcribe_diarize",),
    _PARTS: ("emu3", "fuyu", "git", "mllama", "moshi"),
    "it is several transformers in one, each with K/V heads of its own": ("blt",),
    "its K/V heads have the name dbrx alone gives them (attn_config.kv_n_heads), and it shares 8 already": ("dbrx",),
    "its layers run several times over, with a cache for every time, so they can't be looked at one by one": ("dory",),
    "two of five of its layers are recurrent and have no K/V heads, where a merge expects them in all": ("lara_mini",),
    "its heads attend in pairs whose difference is taken; merging K/V heads would break the pairs": ("diffllama",),
    "every K/V head masks by its own values what it looks at, which no merged head could": ("doge",),
    "its layers differ in their query heads and widths too, which no class of transformers holds": ("openelm",),
    "some of its layers have no attention, and its feed-forward parts differ, which no class of transformers holds": (
        "nemotron-nas",
    ),
    "its query heads are experts over shared K/V heads, which can't be merged further": ("jetmoe",),
    "every K/V head has an indexer that chooses what it looks at, which no merged head could": ("minimax_m3_vl_text",),
    "all of its query heads share one K/V head already": ("deepseek_v4",),
}

REFUSED: dict[str, str] = {
    model_type: reason for reason, model_types in _BY_REASON.items() for model_type in model_types
}
