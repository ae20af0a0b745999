"""VaultGemma: Gemma 2, trained with differential privacy."""

from gqa.convert.family import Family

FAMILY = Family(
    model_type="vaultgemma",
    known_as="VaultGemma 1B",
    default_kv_heads=4,
    default_head_dim=256,
)
