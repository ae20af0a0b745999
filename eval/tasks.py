"""Tasks of lm-evaluation-harness, run on a loaded model through its Python API; tasks of one's own work offline."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqa.convert.errors import UserError, did_you_mean, first_line
from gqa.eval.options import EvalOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Say = Callable[[str, int, int], None]
TaskScores = dict[str, dict[str, dict[str, float | None]]]
"""By task and metric, `value` and `standard_error`."""


def check_tasks(options: EvalOptions) -> None:
    """Refuse what would fail only after hours of scoring.

    Raises:
        UserError: the harness is not installed, the folder is not there, or it knows no such task.
    """
    if not options.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks need lm-evaluation-harness; install it with: pip install 'gqa[lm-eval]'")
    if options.task_path is not None and not Path(options.task_path).is_dir():
        raise UserError(f"no such folder: {options.task_path}; task_path is where YAML files of tasks are")
    known = _manager(options).all_tasks
    for task in options.tasks:
        if task not in known and not Path(task).is_file():
            hint = did_you_mean(task, known)
            raise UserError(f"lm-evaluation-harness has no task {task!r}{hint}; `lm-eval ls tasks` lists all")


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    options: EvalOptions,
    progress: Say = lambda *_: None,
) -> TaskScores:
    """Every metric of every task, as the harness computes it.

    Raises:
        UserError: the data of a task can't be had, or its file is wrong.
    """
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    progress(f"tasks {', '.join(options.tasks)}", 0, 0)
    wrap: Any = HFLM  # decorators hide these signatures from type checkers
    run: Any = simple_evaluate
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # that a model is given and not a name is no news
    backend = "seq2seq" if model.config.is_encoder_decoder else "causal"
    harness = wrap(pretrained=model, tokenizer=tokenizer, backend=backend, batch_size=options.batch_size or 8)
    try:
        with _no_stderr():  # its own bars, and what git says where there is no repository; what goes wrong is raised
            found = run(
                model=harness,
                tasks=list(options.tasks),
                task_manager=_manager(options),
                limit=options.task_limit,
                bootstrap_iters=1000,
                log_samples=False,
            )
    except (OSError, ValueError, ImportError, TemplateError) as error:  # no network, no data set, no such field
        raise UserError(f"tasks {', '.join(options.tasks)} can't be run: {first_line(error)}") from error
    return {task: _metrics(values) for task, values in found["results"].items()}


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing through to stderr, neither of this process nor of those that it starts."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with redirect_stderr(StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """`acc,none` and `acc_stderr,none` of the harness as one entry `acc`; another filter's name stays."""
    found = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not kind or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric} ({kind})"
        found[name] = {"value": float(value), "standard_error": error if isinstance(error, float) else None}
    return found


def _manager(options: EvalOptions) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=options.task_path)
