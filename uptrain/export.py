"""The finished checkpoint: the input's own tensors by name, shape and file type, with the trained values in them.

transformers renames, fuses and splits tensors between disk and memory, and rewrites configs as it saves. So it saves
nothing here: tensors are written under the names they had in the input, in its order, and every other file is copied.
They come out of a run's checkpoint one layer at a time: no process ever holds the model for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gqa.convert.directory import atomic_directory, check_space, disk_errors
from gqa.convert.errors import UserError
from gqa.convert.provenance import new_stage, read_stages, write_stages
from gqa.convert.sidefiles import copy_side_files, write_config
from gqa.convert.source import read_config
from gqa.convert.tensors import read_entries
from gqa.convert.writer import OutputTensor, plan_shards, write_shards
from gqa.uptrain.saved import SavedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD_BYTES = 5_000_000_000
_LAYER = re.compile(r".*?\.\d+\.")


@dataclass(frozen=True)
class Export:
    """What will be written, known and checked before training starts."""

    checkpoint: Path
    output: Path
    overwrite: bool
    tensors: list[OutputTensor]
    dtype: torch.dtype | None
    """None: every tensor keeps the type that it has in the input."""

    parts: Mapping[str, tuple[str, ...]]
    """Of every tensor that is trained, the names of the model's own tensors that its layer has."""

    def write(self, model: "PreTrainedModel", weights: SavedWeights, facts: dict[str, Any]) -> None:
        """Write the checkpoint: `weights` are the model's, `facts` are for its provenance."""
        dtypes = {tensor.name: tensor.dtype for tensor in self.tensors}

        @lru_cache(maxsize=1)
        def layer(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            return _as_on_disk(model, weights.read(names))

        def produce(name: str) -> torch.Tensor:
            return layer(self.parts[name])[name].to(dtypes[name])

        stages = [*read_stages(self.checkpoint), new_stage("uptrain", self.checkpoint, **facts)]
        with disk_errors(self.output), atomic_directory(self.output, overwrite=self.overwrite) as work:
            shards = plan_shards(self.tensors, _SHARD_BYTES)
            write_shards(work, shards, produce, lambda _: None)
            copy_side_files(self.checkpoint, work)
            self._write_config(work)
            write_stages(work, stages)

    def _write_config(self, work: Path) -> None:
        config = read_config(self.checkpoint)
        name = str(self.dtype).removeprefix("torch.")
        if self.dtype is None or name == config.get("dtype", config.get("torch_dtype")):
            (work / "config.json").write_bytes((self.checkpoint / "config.json").read_bytes())
        else:
            write_config(work, config | {"dtype": name, "torch_dtype": name})  # as transformers 5 and 4 spell it


def plan_export(model: "PreTrainedModel", checkpoint: Path, output: Path, dtype: str, *, overwrite: bool) -> Export:
    """Make sure that the trained model can be written as the input was, before the time is spent on training it.

    Raises:
        UserError: transformers can't turn its tensors back into those of the input, or the disk is too small.
    """
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    entries = read_entries(checkpoint)
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for layer in _layers(model):
        written = _as_on_disk(model, layer)
        shapes |= {name: tuple(tensor.shape) for name, tensor in written.items()}
        parts |= dict.fromkeys(written, tuple(layer))
    strange = [name for name in shapes if name not in entries and name not in model.all_tied_weights_keys]
    strange += [name for name in shapes if name in entries and shapes[name] != entries[name].shape]
    if strange:
        raise UserError(
            f"the installed transformers holds {strange[0]} in memory in a form that it can't give back "
            f"as {checkpoint} has it; try another version of transformers"
        )
    tensors = []
    for name, entry in entries.items():
        kind = chosen if chosen is not None and entry.dtype.is_floating_point else entry.dtype
        source = None if name in shapes else entry  # what the model does not use is copied
        tensors.append(OutputTensor(name=name, dtype=kind, shape=entry.shape, source=source))
    check_space(output, sum(tensor.nbytes for tensor in tensors))
    return Export(checkpoint, output, overwrite, tensors, chosen, parts)


def _layers(model: "PreTrainedModel") -> list[dict[str, torch.Tensor]]:
    """The model's tensors, without their values, layer by layer; what is in no layer comes last, together."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        numbered = _LAYER.match(name)
        layers.setdefault(numbered[0] if numbered else "", {})[name] = torch.empty_like(tensor, device="meta")
    rest = layers.pop("", {})
    return [*layers.values(), rest]


def _as_on_disk(model: "PreTrainedModel", weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's tensors under the names, and in the pieces, of the files it was loaded from."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(weights))
