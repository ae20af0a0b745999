"""Make checkpoints, give them to every engine, compare, and write the matrix: `python -m consumers`."""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consumers.catalogue import ENGINES, Engine
from consumers.checkpoints import make_checkpoints
from consumers.compare import Row, compared, worse
from consumers.environments import NotRunError, prepare
from consumers.matrix import rendered, verdicts
from consumers.reference import PROMPTS, STEPS, Reference, refer

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "consumers.md"
KEPT = ROOT / ".consumers"
"""Environments and checkpoints: what the next run finds ready."""

PATIENCE = 900
"""Seconds that one engine may take for all checkpoints."""


def main() -> int:
    """Exit code 1 where a row is worse than the page has it, or, on a first run, where one does not agree."""
    parser = argparse.ArgumentParser(prog="python -m consumers", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the page as it is")
    parser.add_argument("--only", metavar="WORD", default="", help="engines whose name has it; writes nothing")
    asked = parser.parse_args()
    before = verdicts(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    checkpoints = make_checkpoints(KEPT / "checkpoints", say)
    say("asking transformers, the reference")
    references = {name: refer(path, KEPT / "work" / "reference") for name, path in checkpoints.items()}
    engines = [engine for engine in ENGINES if asked.only.lower() in engine.name.lower()]
    rows = [row for engine in engines for row in rows_of(engine, checkpoints, references)]
    page = rendered(rows, references, importlib.metadata.version("transformers"), datetime.now(UTC).date())
    if not asked.check and not asked.only:
        PAGE.write_text(page, encoding="utf-8")
    print(page)
    fallen = [row for row in rows if worse(row, before.get((row.engine, row.checkpoint)))]
    for row in fallen:
        say(f"WORSE than {PAGE.relative_to(ROOT)} says: {row.engine}, {row.checkpoint}: {row.verdict} {row.reason}")
    return 1 if fallen else 0


def rows_of(engine: Engine, checkpoints: dict[str, Path], references: dict[str, Reference]) -> Iterator[Row]:
    """Install the engine, ask it about every checkpoint, compare."""
    try:
        say(f"installing {engine.name}")
        said = run(engine, prepare(engine, KEPT / "environments"), checkpoints)
    except NotRunError as error:
        say(f"{engine.name} is not run: {error}")
        yield from (Row(engine=engine.name, checkpoint=n, verdict="not run", reason=str(error)) for n in checkpoints)
        return
    for name in checkpoints:
        answers, right = said["answers"][name], references[name].answers
        row = compared(engine.name, name, said["version"], answers, right, engine.tolerance_for(name))
        say(f"{engine.name}, {name}: {row.verdict} {row.reason}")
        yield row


def run(engine: Engine, python: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    """The answers of one process of the engine, in its own environment and without a network.

    If it ends early every checkpoint has a process of its own, so that what ends one says nothing of the others.

    Raises:
        NotRunError: it took too long.
    """
    say(f"asking {engine.name}")
    work = KEPT / "work" / engine.path.stem / python.parents[1].name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job, answers = work / "job.json", work / "answers.json"
    content = {"prompts": PROMPTS, "steps": STEPS, "work": str(work), "answers": str(answers)}
    content["checkpoints"] = {name: str(path) for name, path in checkpoints.items()}
    job.write_text(json.dumps(content), encoding="utf-8")
    settings = {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
    settings["PROJECT_PYTHON"] = sys.executable  # for what an engine is given by another command of the project
    log = work / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        command = [str(python), str(engine.path), str(job)]
        try:
            subprocess.run(command, stdout=output, stderr=output, env=os.environ | settings, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise NotRunError(f"stopped after {PATIENCE} s") from None
    if answers.exists():
        return json.loads(answers.read_text(encoding="utf-8"))
    if len(checkpoints) > 1:
        each = [run(engine, python, {name: path}) for name, path in checkpoints.items()]
        found = {name: answer for one in each for name, answer in one["answers"].items()}
        return {"version": max(one["version"] for one in each), "answers": found}
    last = (log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
    error = {"error": f"the process ended early: {last}"}
    return {"version": "", "answers": dict.fromkeys(checkpoints, error)}


def say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
