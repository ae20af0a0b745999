"""DeepSpeed's ZeRO-3 in the loop: its engine takes the gradients and the step; what is saved is what FSDP2 would save.

The engine keeps flat shards. For a checkpoint every tensor is gathered, one at a time, and each process keeps
its rows of it in host memory: so the format is that of all other strategies, and whoever has saved a run, one process
or many, sharded or not, anyone goes on with it. DeepSpeed's own checkpoints fit nothing but DeepSpeed.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed, nn
from torch.distributed.tensor import DTensor, Shard

from gqa.convert.errors import UserError
from gqa.uptrain.stepping import Stepping

_AVERAGES = ("exp_avg", "exp_avg_sq")


def is_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed shards."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, clip: float, rows: int) -> None:
    """Fill in what DeepSpeed wants to know before a model is prepared.

    Raises:
        UserError: another stage than 3, or an optimizer elsewhere than on the GPU.
    """
    plugin = accelerator.deepspeed_plugin
    assert plugin is not None
    zero = plugin.deepspeed_config["zero_optimization"]
    if zero["stage"] != 3 or any(_offloads(zero, what) for what in ("offload_optimizer", "offload_param")):
        raise UserError(
            f"of DeepSpeed ZeRO-3 without offloading is known here, and the configuration says stage {zero['stage']}"
            f"{' with offloading' * (zero['stage'] == 3)}; take --accelerate-config zero3, or fsdp2"
        )
    plugin.deepspeed_config |= {
        "gradient_clipping": clip,
        "gradient_accumulation_steps": 1,  # steps are told when they are to be
        "train_micro_batch_size_per_gpu": rows,
    }


def _offloads(zero: dict[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"


@dataclass(frozen=True, kw_only=True)
class ZeroStepping(Stepping):
    """ZeRO-3: every process has its part of the gradient, and gives it to the optimizer itself."""

    @property
    def engine(self) -> Any:
        """DeepSpeed's."""
        return self.module

    def part(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradients meet in every micro-batch, each going to whom it belongs."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """As everywhere; accelerate's own would step at once."""
        self.engine.backward(loss)

    def clipped_norm(self) -> torch.Tensor:
        """The norm over all processes; the engine clips as it steps."""
        from deepspeed.utils import safe_get_local_grad

        parts = [safe_get_local_grad(item) for item in self.module.parameters() if item.requires_grad]
        total = torch.stack([part.float().square().sum() for part in parts]).sum()
        distributed.all_reduce(total)
        return total.sqrt()

    def step_unless(self, left_out: torch.Tensor) -> None:
        """The fused kernel asks the device itself; a gradient that is not finite the engine leaves out by itself."""
        _inner(self.optimizer).found_inf = left_out
        self.engine.step()


def names_of_groups(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in every group of the optimizer, before DeepSpeed puts flat ones in their place."""
    names = {parameter: name for name, parameter in reversed(list(module.named_parameters(remove_duplicate=False)))}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def state_of(engine: Any, optimizer: Any, groups: list[list[str]]) -> dict[str, Any]:
    """Weights and optimizer as `get_state_dict` has them of one process, every tensor sharded by rows."""
    import deepspeed
    from deepspeed.utils import safe_get_full_optimizer_state

    mesh = distributed.init_device_mesh(engine.device.type, (distributed.get_world_size(),))
    _complete(optimizer)
    inner = _inner(optimizer)
    steps = next(iter(inner.state.values()))["step"].detach().cpu().clone()
    trained = {name for names in groups for name in names}
    weights, state = dict[str, Any](), dict[str, Any]()
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = _mine(parameter.data, mesh)
        if name in trained:
            averages = {key: _mine(safe_get_full_optimizer_state(parameter, key), mesh) for key in _AVERAGES}
            state[name] = {"step": steps.clone(), **averages}
    weights |= {name: tensor for name, tensor in engine.module.state_dict().items() if name not in weights}
    options = [{key: value for key, value in group.items() if key != "params"} for group in inner.param_groups]
    listed = [{**group, "params": names} for group, names in zip(options, groups, strict=True)]
    return {"model": weights, "optimizer": {"state": state, "param_groups": listed}}


def restore(engine: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Take up what `state_of` has made and a checkpoint has filled in."""
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    averages = state["optimizer"]["state"]
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        whole = _whole(state["model"][name], engine.device)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, whole)
        for key in _AVERAGES if name in averages else ():
            safe_set_full_optimizer_state(parameter, _whole(averages[name][key], engine.device), key)
    for name, buffer in engine.module.named_buffers():
        if name in state["model"]:
            buffer.copy_(state["model"][name])
    steps = next(iter(averages.values()))["step"]
    for known in _inner(optimizer).state.values():
        known["step"].copy_(steps)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Torch's, in DeepSpeed's, in accelerate's."""
    return optimizer.optimizer.optimizer


def _complete(optimizer: Any) -> None:
    """Give every flat shard the averages that a first step would."""
    state = _inner(optimizer).state
    for flat in optimizer.optimizer.fp32_partitioned_groups_flat:
        if not state.get(flat):
            state[flat] = {key: torch.zeros_like(flat) for key in _AVERAGES}
            state[flat]["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)


def _mine(whole: torch.Tensor, mesh: Any) -> torch.Tensor:
    """A process' own rows of a tensor, in host memory, known as such."""
    if not whole.ndim:
        return whole.detach().cpu().clone()
    parts = whole.detach().chunk(mesh.size())
    rank = mesh.get_local_rank()
    mine = parts[rank] if rank < len(parts) else whole[:0]
    return DTensor.from_local(
        mine.detach().cpu().clone(), mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _whole(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of all processes' rows."""
    if not isinstance(tensor, DTensor):
        return tensor.to(device)
    local = tensor.to_local().to(device)
    on_device = DTensor.from_local(
        local, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return on_device.full_tensor()
