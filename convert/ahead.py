"""Layers made ahead of the writing: with calibration they come in the model's order, and wait on disk for theirs.

Every finished layer is a safetensors file of a folder, with what `gqa.json` says of it in the file's metadata.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.calibration import CalibrationOptions, Progress, calibration_windows, layer_moments, stage
from gqa.convert.data import OWN_TEXT
from gqa.convert.directory import disk_errors, made_parents, write_atomically
from gqa.convert.errors import UserError
from gqa.convert.fit import fit_layers
from gqa.convert.layerfit import FitOptions
from gqa.convert.layout import all_tensors
from gqa.convert.merging import disk_tensors, merge_layer
from gqa.convert.moments import Moments
from gqa.convert.plan import Plan
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.provenance import fingerprint, versions
from gqa.convert.residual import Weights, Written
from gqa.convert.staged import StagedModel

_TEXT = "text.safetensors"


class LayerStore:
    """Finished layers on disk."""

    def __init__(self, folder: Path) -> None:
        """The store in `folder`, which exists, with the layers that it already holds."""
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        self.records: dict[int, dict[str, object]] = {}
        """what `gqa.json` says of every layer"""
        for path in sorted(folder.glob("layer-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.records[int(path.stem.removeprefix("layer-"))] = json.loads(file.metadata()["record"])
                self._file_of |= dict.fromkeys(file.keys(), path)

    def put(self, layer: int, tensors: Mapping[str, Tensor], record: dict[str, object]) -> None:
        """Keep a layer's tensors, by full name, and its record."""
        path = self._folder / f"layer-{layer:05}.safetensors"
        temporary = path.with_suffix(".partial")
        # A tensor may be a view of a larger one, which safetensors would write whole or refuse.
        own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(own, temporary, metadata={"record": json.dumps(record)})
        temporary.replace(path)
        self._file_of |= dict.fromkeys(tensors, path)
        self.records[layer] = record

    def take(self, name: str) -> Tensor:
        """The tensor called `name`."""
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)


Take = Callable[[str], Tensor]
Text = tuple[Tensor, Tensor]
"""windows of tokens to calibrate on, and others to check on"""


@dataclass(frozen=True, kw_only=True)
class Making(Generic[Weights]):
    """How the layers of a calibrated conversion are made, whatever they are converted into."""

    checkpoint: Path
    calibration: CalibrationOptions
    fit: FitOptions | None
    settings: str
    """all options that decide what the layers become, beside the checkpoint and the text"""
    num_layers: int
    dtype: torch.dtype
    """that the layers are stored in"""
    original: Callable[[], StagedModel]
    """the checkpoint, ready to be run"""
    converted: Callable[[], StagedModel]
    """the same in the shape that it is converted into"""
    make: Callable[[int, Moments], tuple[Weights, dict[str, object]]]
    """a layer's new weights by its moments, and what `gqa.json` says of it"""
    written: Written[Weights]
    """a layer's tensors, by name on disk after the prefix"""
    in_class: Written[Weights]
    """the same by the names of the class"""
    tensors: Callable[[int, Weights], dict[str, Tensor]]
    """the same as they are stored, by full name"""
    read: Callable[[int, Take], dict[str, Tensor]]
    """a stored layer's tensors, by name after the prefix"""


def making_of(plan: Plan) -> Making[AttentionWeights]:
    """How the layers of a merge of heads are made."""
    calibration, own_code = plan.options.calibration, plan.own_code
    assert calibration is not None

    def make(layer: int, moments: Moments) -> tuple[AttentionWeights, dict[str, object]]:
        merged = merge_layer(plan, layer, moments)
        return merged.weights, merged.record()

    def read(layer: int, take: Take) -> dict[str, Tensor]:
        return {item.name.removeprefix(plan.prefixes[layer]): take(item.name) for item in plan.merged[layer]}

    return Making(
        checkpoint=plan.checkpoint,
        calibration=calibration,
        fit=plan.options.fit,
        settings=repr(replace(plan.options, max_shard_size="1GB")),
        num_layers=len(plan.layers),
        dtype=plan.merged[0][0].dtype,
        original=partial(stage, plan.checkpoint, calibration, own_code=own_code),
        converted=partial(stage, plan.checkpoint, calibration, groups=plan.options.groups, own_code=own_code),
        make=make,
        written=partial(all_tensors, plan.family),
        in_class=partial(all_tensors, plan.family.of_class),
        tensors=partial(disk_tensors, plan),
        read=read,
    )


@contextmanager
def layers_ahead(
    making: Making[Weights], output: Path, progress: Progress, text: Text | None = None
) -> Iterator[LayerStore]:
    """Make all layers of a calibrated conversion, in a folder beside `output` that is gone when the `with` ends well.

    A fit that is broken off leaves the folder, and the same conversion goes on from the layers in it.

    Args:
        making: how.
        output: where the conversion goes.
        progress: told what is being done.
        text: what `calibration_windows` gave for this calibration, where that is known already.

    Raises:
        UserError: the calibration data, the checkpoint or the folder can't be used, or the disk is full.
    """
    quiet_transformers()

    def given() -> Text:
        return text or calibration_windows(making.checkpoint, making.calibration, progress)

    if making.fit is None:
        train, _ = given()
        prefix = f".{output.name}."
        with (
            made_parents(output),
            tempfile.TemporaryDirectory(prefix=prefix, suffix=".layers", dir=output.parent) as name,
        ):
            store = LayerStore(Path(name))
            _make_all(making, store, train, progress)
            yield store
    else:
        read = None if making.calibration.data == OWN_TEXT else given()
        with made_parents(output):
            folder = _resumable_folder(output, _key(making, read))
            with _kept_if_broken_off(folder, making.num_layers):
                store = LayerStore(folder)
                with disk_errors(folder):
                    _fit_all(making, making.fit, store, read or _kept_text(folder, given), progress)
                yield store


@contextmanager
def _kept_if_broken_off(folder: Path, num_layers: int) -> Iterator[None]:
    """Remove the folder at a good end; at a bad one only if nothing is in it yet, and tell the user of it otherwise."""
    try:
        yield
    except BaseException as error:
        done = len(LayerStore(folder).records)
        has_text = (folder / _TEXT).exists()
        what = f"{done} of {num_layers} layers are" if done else "the text that it wrote is"
        kept = f"{what} kept in {folder}; the same command goes on from there"
        if not done and not has_text:
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(kept) from error
        elif isinstance(error, UserError):
            raise UserError(f"{error} ({kept})") from error
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _resumable_folder(output: Path, key: str) -> Path:
    """`OUTPUT.layers-KEY`, with what an earlier run with the same key left in it, and otherwise empty.

    Raises:
        UserError: there is something else of that name.
    """
    folder = output.with_name(f"{output.name}.layers-{key[:8]}")
    marker = folder / "key"
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(exist_ok=True)
        write_atomically(marker, key)
    elif not (marker.is_file() and marker.read_text() == key):
        raise UserError(f"{folder} holds no layers of this conversion, which would keep them there; move it away")
    return folder


def _kept_text(folder: Path, write: Callable[[], Text]) -> Text:
    """What the model writes; once it is written it waits in the folder, as a GPU might not write the same again."""
    path = folder / _TEXT
    if not path.exists():
        train, held_out = write()
        temporary = path.with_suffix(".partial")
        save_file({"train": train.contiguous(), "held_out": held_out.contiguous()}, temporary)
        temporary.replace(path)
    kept = load_file(path)
    return kept["train"], kept["held_out"]


def _key(making: Making[Weights], text: Text | None) -> str:
    """A hash of all that decides what the layers become: the checkpoint, the options, the text and gqa's version.

    Text that the model writes itself follows from the others.
    """
    digest = hashlib.sha256(fingerprint(making.checkpoint).encode())
    digest.update(f"{making.settings} {versions()['gqa']}".encode())
    for ids in text or ():
        digest.update(ids.numpy().tobytes())
    return digest.hexdigest()


def _make_all(making: Making[Weights], store: LayerStore, windows: Tensor, progress: Progress) -> None:
    for layer, moments in layer_moments(making.original(), windows, progress=progress):
        weights, record = making.make(layer, moments)
        store.put(layer, making.tensors(layer, weights), record)


def _fit_all(
    making: Making[Weights],
    options: FitOptions,
    store: LayerStore,
    text: Text,
    progress: Progress,
) -> None:
    records: dict[int, dict[str, object]] = {}

    def start(layer: int, moments: Moments) -> Weights:
        weights, records[layer] = making.make(layer, moments)
        return weights

    def report(layer: int, step: int) -> None:
        done, total = layer * options.steps + step, making.num_layers * options.steps
        progress(f"layer {layer + 1} of {making.num_layers}", done, total)

    for done in fit_layers(
        making.original(),
        making.converted(),
        start,
        text,
        options,
        making.written,
        in_class=making.in_class,
        dtype=making.dtype,
        finished={layer: partial(making.read, layer, store.take) for layer in store.records},
        progress=report,
    ):
        record = records.pop(done.layer) | {"fit": asdict(done.fit)}
        store.put(done.layer, making.tensors(done.layer, done.weights), record)
