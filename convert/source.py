"""Finding the checkpoint a user named: a directory, or a Hub id fetched through huggingface_hub."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.names import check_names

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_FOLDERS = ("additional_chat_templates",)
_OTHER_FRAMEWORKS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".ckpt")


def resolve_checkpoint(name: str | Path) -> Path:
    """The directory of the checkpoint called `name`, downloading it first when it is a Hub id (`org/name`).

    A directory on disk always wins over a Hub id of the same spelling.

    Raises:
        UserError: no such directory, not a checkpoint, or the Hub does not have it or can't be reached.
    """
    path = Path(name)
    check_names(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json; name the directory of a Hugging Face checkpoint")
        return path
    if path.exists():
        raise UserError(f"{path} is a file; name the checkpoint's directory")
    if _HUB_ID.match(str(name)) and not str(name).startswith("."):
        return _download(str(name))
    raise UserError(
        f"no such directory: {path}{_near(path)}; name one with a checkpoint, or a model on the Hub, org/name"
    )


def _near(path: Path) -> str:
    """The checkpoint beside `path` whose name is most like its own, as a question."""
    beside = [item.parent.name for item in path.parent.glob("*/config.json")]
    return did_you_mean(path.name, beside)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's `config.json`.

    Raises:
        UserError: it is missing, not JSON, or not an object.
    """
    try:
        return read_object(checkpoint / "config.json")
    except FileNotFoundError:
        raise UserError(f"{checkpoint} has no config.json; name the directory of a Hugging Face checkpoint") from None


def read_object(path: Path, named: str | Path = "") -> dict[str, Any]:
    """The JSON object that the file `path` holds.

    Args:
        path: the file, which is there.
        named: what errors call it, where it is the copy of another.

    Raises:
        UserError: it can't be read, is not JSON, or not an object.
    """
    named = named or path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise UserError(f"no permission to read {named}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{named} is not JSON ({error}); restore it from the original checkpoint") from None
    if not isinstance(found, dict):
        raise UserError(f"{named} holds a {type(found).__name__}, not a JSON object; restore it")
    return found


def wanted_files(files: Iterable[str]) -> list[str]:
    """Of a repository's files, those that make its transformers checkpoint: one copy of the weights, and side files.

    Safetensors are preferred to `pytorch_model.bin`; weights of other frameworks, `consolidated.*` copies and
    folders are left out.
    """
    top = [name for name in files if "/" not in name or name.partition("/")[0] in _FOLDERS]
    has_safetensors = any(name in ("model.safetensors", "model.safetensors.index.json") for name in top)
    unwanted = _OTHER_FRAMEWORKS if has_safetensors else _OTHER_FRAMEWORKS[1:]
    return [name for name in top if not name.endswith(unwanted) and not name.startswith(("consolidated.", "."))]


def _download(hub_id: str) -> Path:
    """The snapshot of `hub_id` in the Hub's cache; what is cached already serves without a network."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        wanted = wanted_files(HfApi().list_repo_files(hub_id))
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    unwanted = ["*/*", "consolidated.*", ".*", *(f"*{suffix}" for suffix in _OTHER_FRAMEWORKS)]
    try:  # the cache is asked whether the snapshot is complete, but for files that were never wanted
        return Path(snapshot_download(hub_id, local_files_only=True, ignore_patterns=unwanted))
    except (OSError, HFValidationError):
        raise UserError(f"{hub_id} is neither a directory here nor to be had from the Hub: {reason}") from None
