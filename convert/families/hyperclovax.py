"""HyperCLOVA X: Granite's multipliers with norms around each sublayer."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="hyperclovax",
    known_as="HyperCLOVA X SEED Think 14B",
)
