"""Checkpoint in, checkpoint out: multi-head attention merged into grouped-query attention on disk.

from gqa.convert import convert_checkpoint
convert_checkpoint("llama-2-7b", groups=8, method="lowrank")  # writes llama-2-7b-gqa8
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily

if TYPE_CHECKING:
    from gqa.convert.calibration import CalibrationOptions
    from gqa.convert.conversion import Conversion, convert_checkpoint, convert_to_latent, preview_checkpoint
    from gqa.convert.errors import UserError
    from gqa.convert.layerfit import FitOptions
    from gqa.convert.listing import listed as list_families
    from gqa.convert.preview import Preview

__all__ = [
    "CalibrationOptions",
    "Conversion",
    "FitOptions",
    "Preview",
    "UserError",
    "convert_checkpoint",
    "convert_to_latent",
    "list_families",
    "preview_checkpoint",
]

__getattr__ = lazily(
    __name__,
    {
        "CalibrationOptions": "gqa.convert.calibration:CalibrationOptions",
        "Conversion": "gqa.convert.conversion:Conversion",
        "FitOptions": "gqa.convert.layerfit:FitOptions",
        "Preview": "gqa.convert.preview:Preview",
        "UserError": "gqa.convert.errors:UserError",
        "convert_checkpoint": "gqa.convert.conversion:convert_checkpoint",
        "convert_to_latent": "gqa.convert.conversion:convert_to_latent",
        "list_families": "gqa.convert.listing:listed",
        "preview_checkpoint": "gqa.convert.conversion:preview_checkpoint",
    },
)
