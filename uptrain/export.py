"""The finished checkpoint."""

from pathlib import Path

from gqa.convert.directory import atomic_directory


def export(model, checkpoint: Path, output: Path) -> None:
    with atomic_directory(output) as work:
        model.save_pretrained(work)
