"""Whom a model learns from: finding the teacher, loading it, and putting it where the model trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config, load_tokenizer
from gqa.convert.provenance import fingerprint, read_stages
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.eval.attentions import attentions
from gqa.eval.model import set_attention
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.plan import longest_sequence
from gqa.uptrain.spread import load_or_outline, reads_weights, spread, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A checkpoint to learn from, if there is one."""

    path: Path | None
    reason: str = ""
    """Why there is none, where the user did not say so."""

    @property
    def key(self) -> str | None:
        """Its fingerprint."""
        return fingerprint(self.path) if self.path else None

    def as_source(self) -> dict[str, str | None] | None:
        """Where it lies and which it is, as `gqa.json` has it."""
        return {"path": str(self.path), "fingerprint": self.key} if self.path else None

    def is_parent_of(self, checkpoint: Path) -> bool:
        """Whether it is what the checkpoint was converted from, wherever either lies."""
        return self.path is not None and self.key == _parent_key(checkpoint)

    def words(self, config: UptrainConfig) -> str:
        """By what the model is trained, in words."""
        if self.path is None:
            return "by cross-entropy" + (f" (no teacher: {self.reason})" if self.reason else "")
        name = "Jensen-Shannon divergence" if config.divergence == "jensen-shannon" else f"{config.divergence} KL"
        words = f"by {name} from the teacher {self.path}{' (offline)' if config.offline_teacher else ''}"
        words += f" at temperature {config.temperature:g}" if config.temperature != 1 else ""
        words += f" and attention outputs at first weighing {config.attention_weight:g}" * bool(config.attention_weight)
        return words + f", with {100 * config.ce_weight:g}% of cross-entropy" * bool(config.ce_weight)


def find_teacher(config: UptrainConfig, checkpoint: Path, length: int) -> Teacher:
    """The teacher that the config asks for, of a model that sees sequences of `length` tokens.

    Raises:
        UserError: it is named and can't teach; or it is to be the parent, and something asked for can't do without one.
    """
    if config.teacher == "none":
        return Teacher(path=None)
    if config.teacher != "auto":
        path = resolve_checkpoint(config.teacher)
        _check_teacher(path, checkpoint, length)
        return Teacher(path=path)
    found = _parent(checkpoint)
    try:
        if found.path is not None:
            _check_teacher(found.path, checkpoint, length)
    except UserError as error:
        found = without_teacher(config, error)
    option = needs_teacher(config)
    if found.path is None and option:
        raise UserError(f"{option} needs a teacher, and there is none: {found.reason}; name one with --teacher")
    return found


def without_teacher(config: UptrainConfig, error: UserError) -> Teacher:
    """No teacher, because of `error`, if the config can do without one.

    Raises:
        UserError: it can't.
    """
    if config.teacher != "auto" or needs_teacher(config):
        raise error
    return Teacher(path=None, reason=str(error))


def needs_teacher(config: UptrainConfig) -> str:
    """An option that means nothing without a teacher, if one is used."""
    options = {"offline_teacher": config.offline_teacher, "attention_weight": config.attention_weight}
    return next((name for name, value in options.items() if value), "")


def _parent(checkpoint: Path) -> Teacher:
    """What the checkpoint was converted from, if it is as it was then."""
    sources = [stage["source"] for stage in read_stages(checkpoint) if stage["stage"] == "convert"]
    if not sources:
        return Teacher(path=None, reason=f"no gqa.json names the parent of {checkpoint}")
    named = Path(sources[-1]["path"])
    for path in (named, checkpoint.resolve().parent / named.name):
        if (path / "config.json").is_file() and fingerprint(path) == sources[-1]["fingerprint"]:
            return Teacher(path=path)
    return Teacher(path=None, reason=f"the parent, {named}, is gone or has changed since")


def _parent_key(checkpoint: Path) -> str | None:
    """The fingerprint of what the checkpoint was converted from, if it was."""
    sources = [stage["source"] for stage in read_stages(checkpoint) if stage["stage"] == "convert"]
    return sources[-1]["fingerprint"] if sources else None


def _check_teacher(path: Path, checkpoint: Path, length: int) -> None:
    """Refuse a teacher that can't be asked about the model's tokens, before it is loaded.

    Raises:
        UserError: another kind of model, another vocabulary, or sequences that are too short.
    """
    taught, teaches = (load_config(place, encoder_decoder=True) for place in (checkpoint, path))
    if taught.is_encoder_decoder != teaches.is_encoder_decoder:
        raise UserError(f"of {path} and {checkpoint} only one is an encoder-decoder; {_REMEDY}")
    longest = longest_sequence(read_config(path))
    if longest is not None and length > longest:
        raise UserError(
            f"sequence_length {length} is beyond the longest sequence of the teacher {path}, {longest}; take that, "
            "or another teacher"
        )
    if not _has_tokenizer(path):
        return  # then only the number of tokens can be compared
    theirs, ours = (load_tokenizer(place).get_vocab() for place in (path, checkpoint))
    if theirs != ours:
        differing = min(theirs.items() ^ ours.items())[0]
        raise UserError(
            f"the teacher {path} has another vocabulary than {checkpoint} (they differ in {differing!r}); {_REMEDY}"
        )


_REMEDY = "name another with --teacher, or train without one with --teacher none"


def _has_tokenizer(path: Path) -> bool:
    return any("token" in item.name for item in path.iterdir())


def find_parent(checkpoint: Path, length: int) -> Path | None:
    """What the checkpoint was converted from, if it is there and can be asked about the model's tokens."""
    found = _parent(checkpoint)
    try:
        if found.path is not None:
            _check_teacher(found.path, checkpoint, length)
    except UserError:
        return None
    return found.path


def load_teacher(path: Path, config: UptrainConfig, dtype: torch.dtype) -> "PreTrainedModel":
    """The teacher in host memory, its weights in `dtype`, which nothing trains.

    Raises:
        UserError: it can't be loaded.
    """
    teacher = load_or_outline(path, dtype)
    set_attention(teacher, config.attention)
    teacher.config.use_cache = False
    teacher.requires_grad_(False)
    return teacher


def check_pair(teacher: "PreTrainedModel", student: "PreTrainedModel", config: UptrainConfig, path: Path) -> None:
    """Refuse what loaded, and can't be compared with the student all the same.

    Raises:
        UserError: numbers of tokens that differ, or attentions if they are to be compared.
    """
    theirs, ours = (model.get_output_embeddings().weight.shape[0] for model in (teacher, student))
    if theirs != ours:
        raise UserError(
            f"the teacher {path} tells {theirs} tokens apart, and the model {ours}: the vocabulary must be the same; "
            f"{_REMEDY}"
        )
    known = reads_weights() and not student.config.is_encoder_decoder
    if known and keeps_apart(student) and not keeps_apart(teacher):
        raise UserError(
            f"the teacher {path}, a {teacher.config.model_type}, looks from one packed document into another, which "
            f"the model does not; {_REMEDY}"
        )
    if config.attention_weight:
        _check_attentions(teacher, student, path)


@torch.no_grad()
def keeps_apart(model: "PreTrainedModel") -> bool:
    """Whether positions that restart keep packed documents apart, as not every class sees to.

    The second of two documents is compared with itself alone; what it is like as the first one's continuation says
    which differences are large.
    """
    was_training = model.training
    model.eval()  # no dropout
    ids, positions = torch.arange(6)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits[0, 3:]
    continued, alone = (model(input_ids=some, use_cache=False).logits[0, -3:] for some in (ids, ids[:, 3:]))
    model.train(was_training)
    return bool((packed - alone).abs().max() < 0.25 * (continued - alone).abs().max())


def _check_attentions(teacher: "PreTrainedModel", student: "PreTrainedModel", path: Path) -> None:
    """Refuse to compare attention outputs that do not correspond."""
    if student.config.is_encoder_decoder:
        raise UserError("attention_weight is for decoders only; leave it out")
    theirs, ours = (len(attentions(model)) for model in (teacher, student))
    widths = teacher.config.hidden_size, student.config.hidden_size
    if theirs != ours or widths[0] != widths[1]:
        raise UserError(
            f"attention_weight compares layer with layer: the teacher {path} has {theirs} of width {widths[0]}, "
            f"the model {ours} of width {widths[1]}; leave it out, or name another teacher"
        )


def place_teacher(teacher: nn.Module, accelerator: Accelerator) -> None:
    """Put the teacher on the device; where the model is sharded, shard the teacher's layers too, each on its own."""
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        teacher.to(accelerator.device)
        return
    given = whole(teacher)
    shard_layers(teacher)
    for tensor in [*teacher.parameters(), *teacher.buffers()]:
        if not isinstance(tensor, DTensor):  # sharding has moved those that it took
            tensor.data = tensor.data.to(accelerator.device)
    spread(teacher, given)


def shard_layers(teacher: nn.Module) -> None:
    """Spread every layer's weights over the processes, to be gathered while it runs.

    Embeddings and output projection stay whole everywhere: chunks of tokens pass through the latter one by one, and
    each would gather it again.
    """
    from torch.distributed.fsdp import fully_shard

    kinds = set(getattr(teacher, "_no_split_modules", None) or ())
    for module in list(teacher.modules()):
        if type(module).__name__ in kinds:
            fully_shard(module, reshard_after_forward=True)
