"""One process, several, and several that share the model's shards: the same run, whoever goes on with it.

FSDP2 runs here on CPUs, through accelerate's own preparation, which leaves CPUs out only by asking for the device. What
only GPUs can prove, the launcher's way into it and NCCL, is marked so.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gqa.uptrain import uptrain
from gqa.uptrain.cli import export_app
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.guard import Guard
from gqa.uptrain.launch import FOLDER
from gqa.uptrain.metrics import read_metrics

Configured = Callable[..., UptrainConfig]

SHARD = """
import os
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
import gqa.uptrain.model
import gqa.uptrain.run
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as the launcher does
load = gqa.uptrain.model.load_or_outline
def load_or_nothing(*options):
    model = load(*options)
    for tensor in [*model.parameters(), *model.buffers()] * (os.environ["RANK"] != "0"):
        tensor.data.fill_(torch.nan)
    return model
gqa.uptrain.model.load_or_outline = gqa.uptrain.teacher.load_or_outline = load_or_nothing
class Sharding(Accelerator):
    def __init__(self, **options):
        del os.environ["ACCELERATE_USE_FSDP"]
        super().__init__(**options)
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
    def prepare(self, *items):
        module, optimizer = super().prepare(*items)
        assert all(isinstance(item, DTensor) for item in module.parameters())
        assert type(module.model.model.layers[0]).__name__.startswith("FSDP")
        return module, optimizer
gqa.uptrain.run.Accelerator = Sharding
"""
"""Makes accelerate shard on CPUs what its FSDP2 plugin shards on GPUs, and makes sure that it did, and that the main
process alone reads weights: of the others they are made NaN."""

ZERO = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # is faster than gloo, but takes a minute to compile
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
import gqa.uptrain.run
class Sharding(Accelerator):
    def __init__(self, **options):
        super().__init__(**options)
        self.state.distributed_type = DistributedType.DEEPSPEED
        plugin = DeepSpeedPlugin(zero_stage=3, zero3_init_flag=False)
        plugin.select(_from_accelerator_state=True)
        self.state.deepspeed_plugins = {"default": plugin}
        self.deepspeed_engine_wrapped = None
    def prepare(self, *items):
        module, optimizer = self._prepare_deepspeed(*items)
        self.state.distributed_type = DistributedType.DEEPSPEED  # which a state made on the way has set back
        assert type(optimizer.optimizer).__name__ == "DeepSpeedZeroOptimizer_Stage3"
        assert all(item.ds_tensor.numel() < item.ds_numel for item in module.parameters())
        return module, optimizer
gqa.uptrain.run.Accelerator = Sharding
"""
"""The same for DeepSpeed."""

without_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
STRATEGIES = {"ddp": "", "fsdp2": SHARD, "zero3": ZERO}


def agree(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_a_run_goes_on_with_another_number_of_processes(
    strategy: str, configured: Configured, flags: list[str], finish, metrics_of, tmp_path: Path
):
    """One process, two of them, one after two, and two after one; and exports of what each has saved."""
    words = [*flags, "--micro-batch-size", "1", "--overwrite"]
    one = uptrain(configured(output=tmp_path / "one"))
    whole = metrics_of(one.run_dir)
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy], folder=tmp_path)
    assert code == 0, said
    agree(metrics_of(tmp_path / "out.run"), whole)
    equal_weights(tmp_path / "out", one.output)
    exported = [export(run / "checkpoints" / "step-4", tmp_path / name) for run, name in
                ((one.run_dir, "of one"), (tmp_path / "out.run", "of two"))]  # fmt: skip
    equal_weights(*exported)
    assert bytes_of(export(tmp_path / "out.run", tmp_path / "newest")) == bytes_of(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(exported[1])

    copy = shutil.copytree(tmp_path / "out.run", tmp_path / "copy.run")
    resumed = uptrain(configured(output=tmp_path / "then one", run_dir=copy, resume=str(copy / "checkpoints/step-4")))
    agree(metrics_of(copy), whole)
    equal_weights(resumed.output, one.output)

    run = one.run_dir
    again = ["--run-dir", str(run), "--resume", str(run / "checkpoints" / "step-4"), "--output", str(tmp_path / "two")]
    code, said = finish([*words, *again], processes=2, patch=STRATEGIES[strategy], folder=tmp_path)
    assert code == 0, said
    assert "from step 4 to 6" in said
    agree(metrics_of(run), whole)
    equal_weights(tmp_path / "two", resumed.output)


LEAVE_OUT = """
import gqa.uptrain.guard
judge, seen = gqa.uptrain.guard.Guard.judge, []
def judge_third(self, *values):
    seen.append(values)
    return judge(self, *values) + (len(seen) == 3)
gqa.uptrain.guard.Guard.judge = judge_third
"""
"""Leaves the third step out, of whose loss and gradient nothing is wrong."""


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_what_learns_otherwise_learns_the_same_in_shards(
    strategy: str, child: Path, configured: Configured, flags: list[str], finish, metrics_of, monkeypatch, tmp_path
):
    """From a teacher, its attention too, with frozen embeddings, a rate for keys and values, and a step left out."""
    changes = {"ce_weight": 0.1, "attention_weight": 0.5, "kv_lr_multiplier": 2.0}
    monkeypatch.setattr(Guard, "judge", Guard.judge)  # to be put back when the patch has replaced it
    exec(LEAVE_OUT, {})
    whole = uptrain(configured(checkpoint=str(child), output=tmp_path / "one", freeze_embeddings=True, **changes))
    assert whole.left_out == 1
    words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = [str(child), *flags[1:], *words, "--freeze-embeddings", "--micro-batch-size", "1"]
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy] + LEAVE_OUT, folder=tmp_path)
    assert code == 0, said
    assert "step 3 is left out" in said
    agree(metrics_of(tmp_path / "out.run"), metrics_of(whole.run_dir))
    equal_weights(tmp_path / "out", whole.output)


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_what_computes_in_bfloat16_keeps_its_weights_in_float32(
    strategy: str, configured: Configured, flags: list[str], finish, metrics_of, tmp_path: Path
):
    words = [*flags, "--precision", "bfloat16", "--micro-batch-size", "1"]
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy], folder=tmp_path)
    assert code == 0, said
    assert "in bfloat16 on cpu" in said
    exported = load_file(export(tmp_path / "out.run", tmp_path / "exported") / "model.safetensors")
    assert all((tensor != tensor.bfloat16()).any() for name, tensor in exported.items() if "proj" in name)
    same, exact = (uptrain(configured(output=tmp_path / kind, precision=kind)) for kind in ("bfloat16", "float32"))
    runs = tmp_path / "out.run", same.run_dir, exact.run_dir
    found, expected, exactly = ([line["loss"] for line in metrics_of(run) if "loss" in line] for run in runs)
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected != exactly


PEAK = """
import gqa.uptrain.run
gqa.uptrain.run.device_peak = lambda *_: 1.0
"""
"""A device that can do one operation a second: MFU is then the operations done in a second, by each of them."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_operations_are_counted_of_whole_weights(
    strategy: str, child: Path, configured: Configured, flags: list[str], finish, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr("gqa.uptrain.run.device_peak", lambda *_: 1.0)
    one = uptrain(configured(checkpoint=str(child), output=tmp_path / "one", max_steps=1))
    words = [str(child), *flags[1:], "--max-steps", "1"]
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy] + PEAK, folder=tmp_path)
    assert code == 0, said
    counted = [2 * operations(tmp_path / "out.run"), operations(one.run_dir)]
    assert counted[0] == pytest.approx(counted[1], rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_the_parent_is_asked_by_all(
    strategy: str, child: Path, configured: Configured, flags: list[str], finish, tmp_path: Path
):
    """What the child comes from, where it does not teach, before the child itself is placed anywhere."""
    one = uptrain(configured(checkpoint=str(child), output=tmp_path / "one", max_steps=1, teacher="none"))
    words = [str(child), *flags[1:], "--max-steps", "1", "--teacher", "none", "--micro-batch-size", "1"]
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy], folder=tmp_path)
    assert code == 0, said
    asked, alone = (read_metrics(run / "metrics.jsonl")[:2] for run in (tmp_path / "out.run", one.run_dir))
    assert "teacher_loss" in asked[0]
    agree(asked, alone)


DAMAGED = """
import gqa.uptrain.level
from gqa.convert.errors import UserError
load_teacher = gqa.uptrain.level.load_teacher
def damaged(*given):
    if os.environ["RANK"] == "0":
        raise UserError("damaged")
    return load_teacher(*given)
gqa.uptrain.level.load_teacher = damaged
"""
"""A parent that can't be read, which only the process that reads can find."""


def test_a_parent_that_cannot_be_read_keeps_nobody_waiting(child: Path, flags: list[str], finish, tmp_path: Path):
    words = [str(child), *flags[1:], "--max-steps", "1", "--teacher", "none", "--micro-batch-size", "1"]
    code, said = finish(words, processes=2, patch=SHARD + DAMAGED, folder=tmp_path)
    assert code == 0, said
    assert all("teacher_loss" not in line for line in read_metrics(tmp_path / "out.run" / "metrics.jsonl"))


def operations(run: Path) -> float:
    """For every token, where MFU is what `PEAK` makes it."""
    line = next(line for line in read_metrics(run / "metrics.jsonl") if "mfu" in line)
    return line["mfu"] / line["tokens_per_second"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_rows_of_one_tensor_are_trained_by_all(
    strategy: str, make_checkpoint, configured: Configured, flags: list[str], finish, metrics_of, tmp_path: Path
):
    """Keys and values where queries stand in the same tensor, and stay."""
    rope = {"rope_theta": 5000.0, "rope_type": "default"}
    fused = make_checkpoint("phi3", num_key_value_heads=2, rope_parameters=rope)
    one = uptrain(configured(checkpoint=str(fused), output=tmp_path / "one", train="kv", weight_decay=0.5))
    words = [str(fused), *flags[1:], "--train", "kv", "--weight-decay", "0.5", "--micro-batch-size", "1"]
    code, said = finish(words, processes=2, patch=STRATEGIES[strategy], folder=tmp_path)
    assert code == 0, said
    agree(metrics_of(tmp_path / "out.run"), metrics_of(one.run_dir))
    equal_weights(tmp_path / "out", one.output)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    before, after = (load_file(path / "model.safetensors")[name] for path in (fused, tmp_path / "out"))
    assert torch.equal(before[:32], after[:32])
    assert not torch.equal(before, after)


def export(saved: Path, output: Path) -> Path:
    result = CliRunner().invoke(export_app, [str(saved), "-o", str(output)])
    assert result.exit_code == 0, result.output
    return output


def bytes_of(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def equal_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_file(path / "model.safetensors") for path in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "gpus",
    [
        pytest.param(count, marks=pytest.mark.skipif(torch.cuda.device_count() < count, reason=reason))
        for count, reason in ((1, "no CUDA device"), (2, "fewer than two CUDA devices"))
    ],
)
@pytest.mark.parametrize("name", ["ddp", "fsdp2", pytest.param("zero3", marks=without_deepspeed)])
def test_gpus_launched_by_name_learn_the_same(
    name: str, gpus: int, flags: list[str], configured: Configured, metrics_of, tmp_path: Path
):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    command = [*launch, "--num_processes", str(gpus), "-m", "gqa.uptrain", *flags]
    settings = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings)
    assert done.returncode == 0, done.stderr
    expected = metrics_of(uptrain(configured(output=tmp_path / "cpu")).run_dir)
    for line, other in zip(metrics_of(tmp_path / "out.run"), expected, strict=True):
        for key in ("loss", "validation_loss"):
            assert line.get(key) == pytest.approx(other.get(key), rel=1e-3)
    equal_weights(export(tmp_path / "out.run", tmp_path / "exported"), tmp_path / "out")
