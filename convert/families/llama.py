"""Llama 1 to 3 and what kept its shape: Vicuna, CodeLlama, OpenLLaMA, DeepSeek-LLM, SmolLM2, Yi."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="llama",
    known_as="Llama 1 to 3, CodeLlama, Vicuna, OpenLLaMA, DeepSeek-LLM, SmolLM2, Yi",
)
