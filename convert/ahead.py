"""Layers made ahead of the writing: with calibration they come in the model's order, and wait on disk for theirs.

Every finished layer is a safetensors file of a folder, with what `gqa.json` says of it in the file's metadata.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gqa.convert.attention import AttentionWeights
from gqa.convert.calibration import Progress, calibration_windows, layer_moments, stage
from gqa.convert.directory import write_atomically
from gqa.convert.fit import fit_layers
from gqa.convert.layout import read_layer
from gqa.convert.merging import MergedLayer, disk_tensors, merge_layer
from gqa.convert.moments import Moments
from gqa.convert.plan import Plan
from gqa.convert.pretrained import quiet_transformers
from gqa.convert.provenance import fingerprint


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


class _Finished(Mapping[int, AttentionWeights]):
    """The layers of a store as weights, read when they are asked for."""

    def __init__(self, store: LayerStore, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._layers = sorted(store.records)

    def __getitem__(self, layer: int) -> AttentionWeights:
        if layer not in self._layers:
            raise KeyError(layer)
        plan = self._plan
        names = [tensor.name for tensor in plan.merged[layer]]
        tensors = {name.removeprefix(plan.prefixes[layer]): self._store.take(name) for name in names}
        return read_layer(plan.family, replace(plan.shape, num_kv_heads=plan.options.groups), tensors)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


@contextmanager
def layers_ahead(plan: Plan, output: Path, progress: Progress) -> Iterator[LayerStore]:
    """Make all layers of a calibrated conversion, in a folder beside `output` that is gone when they are written.

    A fit that is broken off leaves the folder, and the same conversion goes on from the layers in it.

    Raises:
        UserError: the calibration data or the checkpoint can't be used.
    """
    calibration = plan.options.calibration
    assert calibration is not None
    quiet_transformers()
    windows = calibration_windows(plan.checkpoint, calibration)
    if plan.options.fit is None:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".layers", dir=output.parent) as folder:
            store = LayerStore(Path(folder))
            _merge_all(plan, store, windows[0], progress)
            yield store
    else:
        folder = _resumable_folder(output, _key(plan, windows))
        with _kept_if_broken_off(folder, len(plan.layers)):
            store = LayerStore(folder)
            _fit_all(plan, store, windows, progress)
            yield store


@contextmanager
def _kept_if_broken_off(folder: Path, num_layers: int) -> Iterator[None]:
    """Remove the folder at a good end; at a bad one only if no layer is in it, and tell who pressed Ctrl-C of it."""
    try:
        yield
    except BaseException as error:
        done = len(LayerStore(folder).records)
        if done == 0:
            shutil.rmtree(folder)
        elif isinstance(error, KeyboardInterrupt):
            kept = f"{done} of {num_layers} layers are kept in {folder}; the same command goes on from there"
            raise KeyboardInterrupt(kept) from error
        raise
    shutil.rmtree(folder)


def _resumable_folder(output: Path, key: str) -> Path:
    """`OUTPUT.layers`, with what an earlier run with the same key left in it, and otherwise empty."""
    folder = output.with_name(f"{output.name}.layers")
    marker = folder / "key"
    if not (marker.is_file() and marker.read_text() == key):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(marker, key)
    return folder


def _key(plan: Plan, windows: tuple[Tensor, Tensor]) -> str:
    """A hash of all that decides what the layers become: the checkpoint, the options and the text."""
    digest = hashlib.sha256(fingerprint(plan.checkpoint).encode())
    digest.update(repr(replace(plan.options, max_shard_size="1GB")).encode())
    for ids in windows:
        digest.update(ids.numpy().tobytes())
    return digest.hexdigest()


def _merge_all(plan: Plan, store: LayerStore, windows: Tensor, progress: Progress) -> None:
    assert plan.options.calibration is not None
    original = stage(plan.checkpoint, plan.options.calibration, own_code=plan.own_code)
    for layer, moments in layer_moments(original, windows, progress=progress):
        merged = merge_layer(plan, layer, moments)
        store.put(layer, disk_tensors(plan, layer, merged.weights), merged.record())


def _fit_all(plan: Plan, store: LayerStore, windows: tuple[Tensor, Tensor], progress: Progress) -> None:
    calibration, options = plan.options.calibration, plan.options.fit
    assert calibration is not None
    assert options is not None
    merged: dict[int, MergedLayer] = {}

    def start(layer: int, moments: Moments) -> AttentionWeights:
        merged[layer] = merge_layer(plan, layer, moments)
        return merged[layer].weights

    original = stage(plan.checkpoint, calibration, own_code=plan.own_code)
    total = original.num_layers * options.steps

    def report(layer: int, step: int) -> None:
        progress(f"layer {layer + 1} of {original.num_layers}", layer * options.steps + step, total)

    for done in fit_layers(
        original,
        stage(plan.checkpoint, calibration, groups=plan.options.groups, own_code=plan.own_code),
        start,
        windows,
        options,
        dtype=plan.merged[0][0].dtype,
        finished=_Finished(store, plan),
        progress=report,
    ):
        if done.fit is not None:
            record = merged.pop(done.layer).record() | {"fit": asdict(done.fit)}
            store.put(done.layer, disk_tensors(plan, done.layer, done.weights), record)
