"""What a checkpoint holds besides weights (tokenizer, templates, generation config, licence), copied byte for byte."""

import json
import shutil
from pathlib import Path
from typing import Any

from gqa.convert.provenance import FILE_NAME
from gqa.convert.tensors import inside, weight_names

_SIZE_LIMIT = 256 << 20  # bytes; the largest tokenizers stay well below
_FOLDERS = ("additional_chat_templates",)


def copy_side_files(checkpoint: Path, work: Path) -> None:
    """Copy every file of `checkpoint` that is not weights, configuration, provenance or hidden into `work`.

    File modes follow the umask; folders are not followed, but for the one that transformers itself writes.

    Raises:
        UserError: a link leads out of the checkpoint, or a file can't be read.
    """
    skipped = weight_names(checkpoint) | {"config.json", FILE_NAME}
    _copy_files(checkpoint, "", skipped, work)
    for folder in _FOLDERS:
        if (checkpoint / folder).is_dir():
            (work / folder).mkdir()
            _copy_files(checkpoint, folder, set(), work)


def _copy_files(checkpoint: Path, folder: str, skipped: set[str], work: Path) -> None:
    for path in sorted((checkpoint / folder).iterdir()):
        if path.name not in skipped and not path.name.startswith(".") and not path.is_dir():
            source = inside(checkpoint, path.name, folder=folder)
            if source.stat().st_size <= _SIZE_LIMIT:
                shutil.copyfile(source, work / folder / path.name)


def write_config(work: Path, config: dict[str, Any]) -> None:
    """Write `config.json` as transformers does: indented JSON in UTF-8, keys in the order given."""
    (work / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
