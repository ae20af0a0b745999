"""DeciLM and DeciCoder: Llama whose layers differ in their KV heads. Becomes a Llama whose layers don't."""

from gqa.convert.levelling import Levelling

REWRITE = Levelling(
    model_type="deci",
    becomes="llama",
    refused={"block_configs": "its layers differ in more than their KV heads, and no class of transformers holds that"},
)
