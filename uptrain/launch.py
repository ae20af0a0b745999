"""Starting a run in many processes: `accelerate launch` with a configuration that comes with the package.

accelerate has the strategies; what is here finds the configuration by name and spells the command.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gqa.convert.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent / "accelerate"
_PORT = 29500

_TIME_TO_SAVE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
"""Seconds from SIGTERM to SIGKILL. Torch's 30 are too few to save a large model in; as long it also waits for processes
that hang because another has failed."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes of which kind."""

    config: str
    """A configuration that comes with the package, by name, or the path of another."""

    nodes: int = 1
    gpus_per_node: int

    def __post_init__(self) -> None:
        """Refuse numbers that are none, and names of nothing."""
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ = self.file

    @property
    def file(self) -> Path:
        """The configuration.

        Raises:
            UserError: there is none of that name.
        """
        names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        if self.config in names:
            return FOLDER / f"{self.config}.yaml"
        path = Path(self.config).expanduser()
        if not path.is_file():
            meant = did_you_mean(self.config, names)
            raise UserError(
                f"no accelerate configuration {self.config!r}{meant}; there are {', '.join(names)}, or give a file"
            )
        return path

    def command(self, words: Sequence[str]) -> list[str]:
        """The words that start the run on a machine; of several, each is told its number by the environment."""
        processes, config = self.nodes * self.gpus_per_node, self.file
        given = ["accelerate", "launch", "--config_file", str(config), "--num_processes", str(processes)]
        if self._is_plain:  # accelerate refuses multi-GPU of one
            given = ["accelerate", "launch", "--num_processes", "1", "--num_machines", "1"]
            given += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        elif self.nodes > 1:
            given += ["--num_machines", str(self.nodes), "--machine_rank", "$NODE_RANK"]
            given += ["--main_process_ip", "$MAIN_ADDRESS", "--main_process_port", str(_PORT)]
        return [*given, "-m", "gqa.uptrain", *words]

    @property
    def _is_plain(self) -> bool:
        """Whether there is one process, and nothing to average or to share."""
        return self.nodes * self.gpus_per_node == 1 and self.file == FOLDER / "ddp.yaml"

    def line(self, words: Sequence[str]) -> str:
        """The command for a shell."""
        quoted = (word if word.startswith("$") else shlex.quote(word) for word in self.command(words))
        return " ".join(["=".join(_TIME_TO_SAVE), *quoted])

    def start(self, words: Sequence[str]) -> NoReturn:
        """Become the command, on this machine.

        Raises:
            UserError: it takes several machines.
        """
        if self.nodes > 1:
            raise UserError(f"{self.nodes} nodes can't be started from here; --print-launch shows the line for each")
        _, _, *rest = self.command(words)
        os.environ.setdefault(*_TIME_TO_SAVE)
        if self._is_plain:  # by itself: accelerate's launcher of one process passes no SIGTERM on
            os.execv(sys.executable, [sys.executable, "-m", "gqa.uptrain", *words])
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *rest])


def gpus_here() -> int:
    """The accelerators of this machine.

    Raises:
        UserError: there are none.
    """
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if not count:
        raise UserError(
            "this machine has no GPU to launch on; say --gpus-per-node for another with --print-launch, or take "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m gqa.uptrain here"
        )
    return count


def words_of(recipe: Path | None, given: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line: what was given, by field, and the recipe."""
    words = [str(given["checkpoint"])] if given.get("checkpoint") else []
    words += ["--recipe", str(recipe)] if recipe else []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "checkpoint" or value in (None, [], ()):
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [word for item in value for word in (flag, str(item))]
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag, *map(str, values)]
    return words
