"""Export: a checkpoint as one file of another format, where users have no tool that keeps its KV heads.

from gqa.convert.export import ExportOptions, export_gguf
export_gguf(ExportOptions(directory=Path("pythia-gqa4"), output=Path("pythia-gqa4.gguf")))
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily

if TYPE_CHECKING:
    from gqa.convert.export.options import ExportOptions
    from gqa.convert.export.writing import export_gguf

__all__ = ["ExportOptions", "export_gguf"]

__getattr__ = lazily(
    __name__,
    {
        "ExportOptions": "gqa.convert.export.options:ExportOptions",
        "export_gguf": "gqa.convert.export.writing:export_gguf",
    },
)
