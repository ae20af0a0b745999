"""The launch line, held against accelerate's own parser."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch.distributed.launcher.api import LaunchConfig
from typer.testing import CliRunner

from gqa.convert.errors import UserError
from gqa.uptrain.cli import app
from gqa.uptrain.launch import FOLDER, Launch

WORDS = ["ckpt dir", "--data", "a.jsonl", "--max-steps", "3"]


def printed(*words: str) -> str:
    result = CliRunner().invoke(app, [*WORDS, "--print-launch", *words])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def parsed(line: str, monkeypatch: pytest.MonkeyPatch):
    """What `accelerate launch` makes of a line."""
    words = [word.replace("$NODE_RANK", "1").replace("$MAIN_ADDRESS", "10.0.0.1") for word in shlex.split(line)]
    assert words.pop(0) == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"
    assert words[:2] == ["accelerate", "launch"]
    monkeypatch.setattr("sys.argv", words)
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
    return arguments


@pytest.mark.parametrize(
    ("name", "strategy"), [("ddp", "multi_gpu"), ("fsdp2", "use_fsdp"), ("zero3", "use_deepspeed")]
)
@pytest.mark.parametrize("nodes", [1, 3])
def test_accelerate_understands_every_line(name: str, strategy: str, nodes: int, monkeypatch: pytest.MonkeyPatch):
    words = ["--accelerate-config", name, "--nodes", str(nodes), "--gpus-per-node", "4"]
    found = parsed(printed(*words), monkeypatch)
    assert getattr(found, strategy)
    assert sum([found.multi_gpu, found.use_fsdp, found.use_deepspeed]) == 1
    assert (found.num_processes, found.mixed_precision, found.module) == (4 * nodes, "no", True)
    assert found.training_script == "gqa.uptrain"
    assert found.training_script_args == WORDS
    if nodes > 1:
        assert (found.num_machines, int(found.machine_rank)) == (3, 1)
        assert (found.main_process_ip, int(found.main_process_port)) == ("10.0.0.1", 29500)
    if name == "zero3":
        assert (int(found.zero_stage), found.offload_optimizer_device, found.zero3_init_flag) == (3, "none", False)
    if name == "fsdp2":
        assert (int(found.fsdp_version), found.fsdp_state_dict_type) == (2, "SHARDED_STATE_DICT")
        assert found.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"


def test_one_process_is_launched_as_one(monkeypatch: pytest.MonkeyPatch):
    found = parsed(printed("--gpus-per-node", "1"), monkeypatch)
    assert (found.num_processes, found.multi_gpu) == (1, False)


def test_every_kind_of_option_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    more = ["--betas", "0.8", "0.9", "--compile", "--no-overwrite", "--trackers", "wandb", "--trackers", "tensorboard"]
    line = printed(*more, "--data", "b.jsonl", "--data-weights", "1,2", "--gpus-per-node", "2", "--json")
    words = parsed(line, monkeypatch).training_script_args
    assert words[:3] == ["ckpt dir", "--data", "a.jsonl"]
    for part in ("--betas 0.8 0.9", "--compile", "--no-overwrite", "--trackers wandb --trackers tensorboard",
                 "--data a.jsonl --data b.jsonl", "--data-weights 1,2", "--json"):  # fmt: skip
        assert part in " ".join(words)


@pytest.mark.parametrize(("given", "seconds"), [(None, "600"), ("90", "90")])
def test_a_launcher_leaves_time_to_save(given: str | None, seconds: str, monkeypatch: pytest.MonkeyPatch):
    """It takes the place of this process, which a test can't let it."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given or "")
    if given is None:
        monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    Launch(config="fsdp2", gpus_per_node=2).start(WORDS)
    assert started[0][-len(WORDS) :] == WORDS
    assert LaunchConfig(1, 1, 2).shutdown_timeout == int(seconds)  # as torch reads it


def test_a_single_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch):
    """So that a signal reaches it."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words) or sys.exit())
    for config in ("ddp", "fsdp2"):
        with pytest.raises(SystemExit):
            Launch(config=config, gpus_per_node=1).start(WORDS)
    assert started[0][1:] == ["-m", "gqa.uptrain", *WORDS]
    assert started[1][1:4] == ["-m", "accelerate.commands.launch", "--config_file"]


def test_the_default_is_ddp():
    assert f"--config_file {FOLDER / 'ddp.yaml'} --num_processes 8 -m gqa.uptrain" in printed("--gpus-per-node", "8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--print-launch", "--accelerate-config", "fsdp3", "--gpus-per-node", "8"], "did you mean 'fsdp2'"),
        (["--print-launch", "--nodes", "0", "--gpus-per-node", "8"], "nodes must be at least 1, got 0"),
        (["--nodes", "2"], "are for --accelerate-config and --print-launch"),
        (["--accelerate-config", "ddp", "--nodes", "2", "--gpus-per-node", "8"], "can't be started from here"),
        (["--print-launch", "--max-steps", "0", "--gpus-per-node", "8"], "max_steps must be above 0"),
    ],
    ids=str,
)
def test_what_cannot_be_launched(words: list[str], said: str):
    result = CliRunner().invoke(app, [*WORDS, *words])
    assert (result.exit_code, said in " ".join(result.stderr.replace("│", " ").split())) == (2, True), result.stderr


def test_without_a_gpu_the_number_must_be_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    result = CliRunner().invoke(app, [*WORDS, "--print-launch"])
    assert (result.exit_code, "no GPU to launch on" in result.stderr) == (2, True)


def test_a_configuration_of_ones_own_is_a_file(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((FOLDER / "ddp.yaml").read_text())
    assert str(mine) in Launch(config=str(mine), gpus_per_node=2).line(WORDS)
    with pytest.raises(UserError, match="no accelerate configuration"):
        Launch(config=str(tmp_path / "none.yaml"), gpus_per_node=2)
