"""What a user may choose about an export: one frozen dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ExportDtype = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to write a GGUF file."""

    directory: Path
    """The checkpoint."""

    output: Path
    """The file to write."""

    dtype: ExportDtype = "auto"
    """Of matrices; auto keeps theirs. Vectors are float32, as llama.cpp wants them."""

    pre: str | None = None
    """llama.cpp's name for the way in which the tokenizer cuts words [default: read from tokenizer.json]."""

    overwrite: bool = False
    """Replace the file if there is one."""
