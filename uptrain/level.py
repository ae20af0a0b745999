"""The level that a model is to come back to, where the run itself does without a teacher, or with its draws alone.

What the model was converted from is asked once about the held-out text, before training takes up memory, and is gone.
"""

from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from gqa.convert.errors import UserError
from gqa.uptrain.attention import packed_attention
from gqa.uptrain.model import device_of_run, teacher_type
from gqa.uptrain.objective import objective_of
from gqa.uptrain.prepare import Setup
from gqa.uptrain.spread import reads_weights
from gqa.uptrain.teacher import check_pair, find_parent, load_teacher, place_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_level(setup: Setup) -> "PreTrainedModel | None":
    """What is to be asked: the offline teacher, or the parent; None where the run asks it itself, or has done so.

    It is loaded before accelerate is set up, which may tell transformers to load models otherwise (ZeRO-3).
    """
    if setup.data.validation is None or setup.lesson.teacher is not None or setup.run_dir.resumed_from():
        return None
    path = setup.teacher.path or find_parent(setup.checkpoint, setup.plan.sequence_length)
    if path is None:
        return None
    try:
        return load_teacher(path, setup.config, teacher_type(setup.config.precision, device_of_run()))
    except UserError:
        return None


def level_of(parent: "PreTrainedModel | None", setup: Setup, accelerator: Accelerator) -> float | None:
    """Its mean negative log-likelihood of the held-out tokens in nats; None if it can't be compared with the model.

    All processes call it, whether they have loaded something or not: whoever has read no weights can't know.
    """
    agreed = [parent is not None and (not reads_weights() or _compares(parent, setup))]
    broadcast_object_list(agreed)
    if parent is None or not agreed[0]:
        return None
    assert setup.data.validation is not None
    place_teacher(parent, accelerator)
    with packed_attention(accelerator.device):
        return setup.data.validation.loss(objective_of(parent)(parent, None), accelerator)


def _compares(parent: "PreTrainedModel", setup: Setup) -> bool:
    try:
        check_pair(parent, setup.model, setup.config, setup.checkpoint)
    except UserError:
        return False
    return True
