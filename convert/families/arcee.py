"""AFM: Llama with a squared ReLU."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="arcee",
    known_as="AFM-4.5B",
)
