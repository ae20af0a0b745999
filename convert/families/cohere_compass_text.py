"""North Micro, the language model on its own: rotary or none by the kind of layer."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="cohere_compass_text",
    known_as="North Micro Vision, its language model on its own",
    reads_head_dim=False,
)
