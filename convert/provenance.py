"""`gqa.json`: how a checkpoint came to be, stage after stage, so that it can be checked and made again.

The file holds `{"format": 1, "stages": [...]}`, oldest stage first. Every stage has

- `stage`: "convert" or "uptrain";
- `created`: UTC time, ISO 8601; `command`: the arguments as typed; `versions`: of Python and the packages used;
- `source`: `path` as given, and the `fingerprint` of the checkpoint that went in;
- `files`: of every file that came out, but for `gqa.json`, its `size` and its `sha256` or, where it is large, its
  `sampled_sha256` (`convert/manifest.py` says of what);
- what the stage itself has to say: for "convert" `model_type` of the output, `rewritten_from` (the source's, where its
  class has no KV heads, or null), `own_code` (the file of our own code that it needs, or null), `method`, `grouping`,
  `restrictions` (what the family keeps it from), `calibration` and `fit` (their options, or null), with calibration
  `computed_with` (what the defaults came to) and `hub_data` (its data, if that was a dataset on the Hub), of an
  encoder-decoder `encoder` (whether that was converted too), `keep_architecture` where that was asked for, `seed`,
  `dtype`, `num_heads`, `kv_heads_before` and `kv_heads_after` (one entry a layer; in an encoder-decoder one for every
  attention that was converted, those at one site before those at the next), of latent attention `latent` (its sizes,
  and which of a head's rotary pairs the shared key has; its `kv_heads_after` are the heads that read the latent), and
  `layers`: of each the `site`, where a layer has several, the `order` in which its old KV heads were grouped, where the
  method knows it the `predicted_damage` (of keys and of values, a share for every group), and what the `fit` did (its
  errors before and after, on its own text and on text held out), and where the number of KV heads was not simply
  given, `kv_budget`, the share of the cache that was asked for, or `auto`, the losses that it was chosen by; for
  "uptrain" `config`,
  `objective`, `teacher` (its `path` and `fingerprint`, or null), `trained` (what of the model, in words), `steps`,
  `tokens`, `trained_on`, `hub_data` (which of the data were datasets on the Hub) and the `validation` results.
"""

import hashlib
import json
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gqa.convert.errors import UserError
from gqa.convert.manifest import feed_sample, record_files

FILE_NAME = "gqa.json"
FORMAT = 1
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


def read_stages(checkpoint: Path) -> list[dict[str, Any]]:
    """The stages that made `checkpoint`, oldest first; empty when it carries no `gqa.json`.

    Raises:
        UserError: the file is not JSON or of a newer format.
    """
    path = checkpoint / FILE_NAME
    if not path.is_file():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UserError(f"{path} has format {document['format']}; this version reads {FORMAT}: upgrade gqa")
        return list(document["stages"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a provenance file ({error}); remove it or restore it") from error


def write_stages(checkpoint: Path, stages: list[dict[str, Any]]) -> None:
    """Write `gqa.json` into `checkpoint`, whose files are those that the last stage made: it comes after all others."""
    *before, last = stages
    made = {**last, "files": record_files(checkpoint, leave_out=FILE_NAME)}
    (checkpoint / FILE_NAME).write_text(stages_text([*before, made]), encoding="utf-8")


def stages_text(stages: list[dict[str, Any]]) -> str:
    """The text of `gqa.json`."""
    return json.dumps({"format": FORMAT, "stages": stages}, indent=2) + "\n"


def new_stage(stage: str, source: Path, **facts: Any) -> dict[str, Any]:
    """A stage's record: what was done now, by which command and versions, to the checkpoint at `source`."""
    return {
        "stage": stage,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
        "source": {"path": str(source), "fingerprint": fingerprint(source)},
        **facts,
    }


def command_line() -> list[str]:
    """How this process was started, in words that start it again: `gqa-eval ...`, or `python -m gqa.eval ...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return [Path(sys.argv[0]).name, *sys.argv[1:]]
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that touch a checkpoint."""
    packages = ("gqa", "torch", "transformers", "safetensors", "accelerate")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def fingerprint(checkpoint: Path) -> str:
    """A SHA-256 that tells checkpoints apart in moments, whatever their size.

    It covers `config.json` whole, and of every weight file the name, the size and a sample in which every tensor has a
    part (`feed_sample` says which). It identifies a checkpoint; it does not prove every byte.
    """
    digest = hashlib.sha256()
    digest.update((checkpoint / "config.json").read_bytes())
    for path in sorted(item for item in checkpoint.iterdir() if item.suffix in _WEIGHT_SUFFIXES):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        feed_sample(digest, path)
    return f"sha256:{digest.hexdigest()}"
