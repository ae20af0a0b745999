"""The story of an evaluation: check everything, then load, score and weigh one checkpoint after another, and report."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from gqa.convert.data import local_path
from gqa.convert.directory import check_output
from gqa.convert.errors import UserError
from gqa.convert.names import check_names
from gqa.eval.continuations import read_prompts
from gqa.eval.measure import Beside, Measuring, Progress
from gqa.eval.options import EvalOptions
from gqa.eval.precision import check_one_precision
from gqa.eval.processes import Processes, join_processes
from gqa.eval.report import Report, build_report, write_report
from gqa.eval.subject import name_checkpoints, prepare
from gqa.eval.tasks import check_tasks


def evaluate(
    checkpoints: Sequence[str | Path],
    options: EvalOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure checkpoints on the same data; the first is the one that the others are compared with.

    Args:
        checkpoints: directories or Hub ids; a string may be `label=checkpoint`.
        options: what to measure on, and how.
        output: a directory to make for report.html, report.md and report.json.
        overwrite: whether it may replace one that exists.
        progress: told how far it is.

    Raises:
        UserError: whatever the user can mend; nothing is left in `output`.
    """
    processes = join_processes(options.device)
    _check(options, processes)
    named = name_checkpoints(checkpoints)
    if output is not None and processes.is_first:
        check_output(output, _inputs(named, options), overwrite=overwrite)
    progress("reading the data", 0, 0)
    subjects = prepare(named, options)
    if options.speed is not None:
        check_one_precision(subjects, options.dtype, processes.device)
    processes.check_same(subjects[0].material.sha256, f"data as {options.data}")
    with closing(Beside(subject=subjects[0])) as beside:
        measure = Measuring(options=options, processes=processes, beside=beside, others=subjects[1:], progress=progress)
        results = [measure(subject) for subject in subjects]
    report = build_report(subjects, results, options, processes)
    if output is not None and processes.is_first:
        write_report(report, output, overwrite=overwrite)
    return report


def _check(options: EvalOptions, processes: Processes) -> None:
    """Refuse what would only fail when the hours of scoring are over."""
    if processes.count > 1 and options.alone:
        raise UserError(f"{' and '.join(options.alone)} is measured by one process; leave it out, or launch only one")
    read_prompts(options.prompts)
    check_names(options.task_path, *options.tasks)
    check_tasks(options)


def _inputs(named: list[tuple[str, Path]], options: EvalOptions) -> list[Path]:
    data = local_path(options.data)
    return [path for _, path in named] + ([data] if data is not None else [])
