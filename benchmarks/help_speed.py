"""How long `--help` takes, beside a Python that does nothing and the smallest program on typer.

All are started in turn, so that what else the machine does falls on each alike. What counts is the processor's time and
the ratio: the clock's time on a busy machine is the others'.

python benchmarks/help_speed.py --repeats 20
"""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

BARE = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
COMMANDS = ["gqa", "gqa-convert", "gqa-eval", "gqa-uptrain", "gqa-push", "gqa-run"]


def main(repeats: Annotated[int, typer.Option(help="Starts of each.")] = 10) -> None:
    """Measure, and print a table."""
    scripts = Path(sys.executable).parent
    starts = {"python -c pass": [sys.executable, "-c", "pass"], "typer, bare": [sys.executable, "-c", BARE, "--help"]}
    starts |= {f"{name} --help": [str(scripts / name), "--help"] for name in COMMANDS}
    clock: dict[str, list[float]] = {name: [] for name in starts}
    processor: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(repeats):
        for name, command in starts.items():
            seconds, used = _start(command)
            clock[name].append(seconds)
            processor[name].append(used)
    least = statistics.median(processor["python -c pass"])
    print("| start | processor, s | min-max | times python | clock, s |\n|---|---|---|---|---|")
    for name in starts:
        middle, low, high = statistics.median(processor[name]), min(processor[name]), max(processor[name])
        print(
            f"| `{name}` | {middle:.3f} | {low:.3f}-{high:.3f} | {middle / least:.1f} "
            f"| {statistics.median(clock[name]):.2f} |"
        )


def _start(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and on the processor that one start takes, its output thrown away."""
    began, nowhere = time.perf_counter(), os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, 1)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    os.close(nowhere)
    _, status, usage = os.wait4(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    typer.run(main)
