"""What the answers must be: those of the project's own transformers; and what they would be with a wrong base."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consumers.answering import Answer
from consumers.compare import largest_difference, margins

PROMPTS = [
    "def read_lines(path, encoding=None):\n"
    '    """Return the lines of a file, without their ends.\n\n'
    "    Raises OSError if there is no such file.\n"
    '    """\n'
    "    lines = []\n"
    "    with open(path, encoding=encoding) as file:\n"
    "        for line in file:\n"
    "            lines.append(line.rstrip())\n"
    "    return lines\n\n\n"
    "class Reader:\n"
    "    def __init__(self, path, encoding=None):\n"
    "        self.path = path\n"
    "        self.encoding = encoding\n\n"
    "    def read(self",
    "import os\n\n# Grüße, naïve café — 你好 1234567890\nif os.path.exists(name):  \n\treturn  None\nelse:\n    raise",
]
"""The second for the tokenizer's sake: accents, other scripts, digits, tabs, spaces in a row."""

STEPS = 24


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The right answers for a checkpoint."""

    answers: list[Answer]
    """One for each prompt."""

    margin: float
    """The median distance of the two likeliest tokens: far above any tolerance, or a continuation proves nothing."""

    rotary_base: float
    """The checkpoint's."""

    lost_base: float
    """How far logits are off with a base of 10000 in its place: far above any tolerance, or logits prove nothing."""


def refer(checkpoint: Path, work: Path) -> Reference:
    """Answer with transformers, and once more without what readers lose most often."""
    from consumers.engines.run_transformers import ask

    answers = list(ask(checkpoint, work, PROMPTS, STEPS))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    spoilt = without_base(checkpoint, config, work / "spoilt")
    wrong = list(ask(spoilt, work, PROMPTS, STEPS))
    return Reference(
        answers=answers,
        margin=float(np.median([margins(answer) for answer in answers])),
        rotary_base=config["rope_parameters"]["rope_theta"],
        lost_base=max(largest_difference(*pair, steps=1) for pair in zip(answers, wrong, strict=True)),
    )


def without_base(checkpoint: Path, config: dict, copy: Path) -> Path:
    """The checkpoint again, its rotary base the default that readers fall back to."""
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    spoilt = config | {"rope_theta": 10000.0, "rope_parameters": config["rope_parameters"] | {"rope_theta": 10000.0}}
    (copy / "config.json").write_text(json.dumps(spoilt), encoding="utf-8")
    return copy
