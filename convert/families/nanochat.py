"""nanochat: norms without weights on q and k, after rotary."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="nanochat",
    known_as="nanochat d20 and d32",
    k_norm_scope="shared",
    k_norm_plain=True,
)
