"""Changes to a checkpoint on disk, as damage or another program would make them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def edit_config(checkpoint: Path, **changes: Any) -> None:
    """Other values in config.json; None takes a key away."""
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    (checkpoint / "config.json").write_text(json.dumps(kept))


def edit_tensors(checkpoint: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors in the one weight file."""
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)
    (checkpoint / "model.safetensors").unlink()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
