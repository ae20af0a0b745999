"""What every engine's script does around its own few lines: read the job, go through the checkpoints, write answers.

Runs in the engine's environment, so it needs nothing but Python. A job is a JSON file:

    {"checkpoints": {name: directory}, "prompts": [text, ...], "steps": 24, "work": directory, "answers": file}

and so are the answers, each checkpoint's under its name: `{"version": ..., "answers": {name: [answer, ...]}}`, one for
every prompt, or `{"error": sentence}` where the engine could not read the checkpoint.
"""

import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an engine makes of one prompt."""

    tokens: list[int]
    """The prompt, by the engine's own tokenizer."""

    continuation: list[int]
    """The greedy continuation."""

    scores: list[list[float]]
    """Before every token of the continuation, one for each token of the vocabulary: [steps, vocab]."""

    normalised: bool = False
    """Scores are log-probabilities, where the engine gives no logits."""


Ask = Callable[[Path, Path, list[str], int], Iterable[Answer]]
"""(checkpoint, an empty directory to write into, prompts, steps) to an answer for every prompt."""


def answer_all(ask: Ask, *packages: str) -> None:
    """Run a script: `SCRIPT JOB.json`.

    Args:
        ask: the engine's own part.
        packages: the distributions whose versions name the engine.
    """
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = {name: _answers(ask, name, job) for name in job["checkpoints"]}
    version = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    Path(job["answers"]).write_text(json.dumps({"version": version, "answers": answers}), encoding="utf-8")


def _answers(ask: Ask, name: str, job: dict) -> list[dict] | dict[str, str]:
    checkpoint = Path(job["checkpoints"][name])
    work = Path(job["work"]) / checkpoint.name
    work.mkdir(parents=True)
    try:
        return [asdict(answer) for answer in ask(checkpoint, work, job["prompts"], job["steps"])]
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is its answer, and is reported as such
        traceback.print_exc()
        return {"error": " ".join(str(error).split()) or type(error).__name__}
