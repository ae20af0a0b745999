"""Finding the checkpoint a user named: a directory, or a Hub id fetched through huggingface_hub."""

import json
import re
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_WANTED = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py", "*.md", "LICENSE*"]


def resolve_checkpoint(name: str | Path) -> Path:
    """The directory of the checkpoint called `name`, downloading it first when it is a Hub id (`org/name`).

    A directory on disk always wins over a Hub id of the same spelling.

    Raises:
        UserError: no such directory, not a checkpoint, or the Hub does not have it or can't be reached.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json; name the directory of a Hugging Face checkpoint")
        return path
    if path.exists():
        raise UserError(f"{path} is a file; name the checkpoint's directory")
    if _HUB_ID.match(str(name)) and not str(name).startswith("."):
        return _download(str(name))
    raise UserError(f"no such directory: {path}")


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's `config.json`.

    Raises:
        UserError: it is missing, not JSON, or not an object.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{checkpoint} has no config.json; name the directory of a Hugging Face checkpoint") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from the original checkpoint") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not a JSON object; restore it")
    return config


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except (OSError, HFValidationError) as error:  # huggingface_hub's HTTP errors are OSErrors
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{hub_id} is neither a directory here nor to be had from the Hub: {reason}") from error
