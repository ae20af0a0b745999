"""The offline teacher: drawn without bias, in the run's own order, kept once, and trained on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gqa.convert.errors import UserError
from gqa.eval.halves import Halves
from gqa.uptrain import uptrain
from gqa.uptrain.cache_teacher import Drawer, cache_teacher
from gqa.uptrain.cli import cache_app, main
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.draws import Drawing, draw_tokens, uniform_numbers
from gqa.uptrain.lesson import Lesson

Configured = Callable[..., UptrainConfig]


@pytest.fixture
def options(options: dict[str, Any], make_checkpoint, tmp_path: Path) -> dict[str, Any]:
    """Without validation, and with a cache of the test's own."""
    teacher = make_checkpoint(name="teacher", num_key_value_heads=4, seed=3)
    return options | {"teacher": str(teacher), "cache_dir": tmp_path / "cache", "validation_tokens": 0}


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Pearson's statistic over 100,000 draws from 12 tokens, far below what a wrong law gives."""
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)) * 2
    uniform = torch.from_numpy(np.stack([uniform_numbers(0, row, 1, 100_000)[0] for row in range(3)]))
    drawn, entropy = draw_tokens(logits, uniform, 2.0)
    law = Categorical(logits=logits.double() / 2)
    torch.testing.assert_close(entropy, law.entropy(), rtol=1e-6, atol=0)
    for row in range(3):
        counts, expected = torch.bincount(drawn[row], minlength=12), law.probs[row] * 100_000
        assert float(((counts - expected) ** 2 / expected).sum()) < 40  # 11 on average; 40 once in 30,000 times
        wrong = torch.softmax(logits[row].double(), -1) * 100_000
        assert float(((counts - wrong) ** 2 / wrong).sum()) > 400


def test_what_cannot_be_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = torch.tensor([[0.0, 0.25, 0.5, 1 - 2**-53]], dtype=torch.float64)
    drawn, entropy = draw_tokens(logits, edges, 1.0)
    assert drawn.tolist() == [[1, 1, 3, 3]]
    torch.testing.assert_close(entropy, torch.tensor([2.0], dtype=torch.float64).log())


def test_numbers_are_a_function_of_seed_and_window():
    one = uniform_numbers(0, 5, 4, 3)
    assert one.shape == (4, 3)
    assert np.array_equal(one, uniform_numbers(0, 5, 4, 3))
    others = [uniform_numbers(1, 5, 4, 3), uniform_numbers(0, 6, 4, 3)]
    assert not any(np.isclose(one, other).any() for other in others)


def test_a_run_learns_from_them_nearly_what_it_learns_from_the_teacher(
    configured: Configured, metrics_of, tmp_path: Path, monkeypatch
):
    """With 4,000 draws at every place the losses agree to a few thousandths; with none of the text in the loss."""
    online = uptrain(configured(output=tmp_path / "online"))
    config = configured(teacher_draws=4000, offline_teacher=True, output=tmp_path / "offline")
    cache_teacher(config)
    monkeypatch.setattr("gqa.uptrain.prepare.load_teacher", None)  # it is not needed any more
    offline = uptrain(config)
    expected, found = ([line["loss"] for line in metrics_of(run.run_dir)] for run in (online, offline))
    assert found == pytest.approx(expected, rel=0.01)
    assert expected[-1] < expected[0] - 0.3  # it does learn


def test_draws_are_of_the_windows_that_the_run_trains_on(configured: Configured, monkeypatch):
    """Seen from the batch: the entropies are those of the teacher on the batch's own tokens, documents kept apart."""
    config = configured(teacher_draws=2, offline_teacher=True, batch_size=2, micro_batch_size=1)
    cache_teacher(config)
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher).eval()
    seen: list[int] = []
    loss = Lesson.loss

    def compared(self: Lesson, inputs: Any, labels: Any, drawn: Any, entropy: Any) -> torch.Tensor:
        with torch.no_grad():
            law = Categorical(logits=teacher(**inputs, use_cache=False).logits)
        torch.testing.assert_close(entropy, law.entropy(), rtol=1e-4, atol=1e-4)
        seen.append(len(drawn.unique()))
        return loss(self, inputs, labels, drawn, entropy)

    monkeypatch.setattr(Lesson, "loss", compared)
    uptrain(config)
    assert len(seen) == 12
    assert min(seen) > 5


def test_it_resumes_to_the_same_lines(configured: Configured, metrics_of):
    config = configured(offline_teacher=True)
    cache_teacher(config)
    whole = uptrain(config)
    lines = metrics_of(whole.run_dir)
    again = uptrain(
        configured(offline_teacher=True, resume=str(whole.run_dir / "checkpoints" / "step-4"), overwrite=True)
    )
    assert metrics_of(again.run_dir) == lines


def test_two_processes_read_what_one_reads(configured: Configured, flags, finish, metrics_of, tmp_path: Path):
    config = configured(offline_teacher=True, output=tmp_path / "whole")
    cache_teacher(config)
    whole = uptrain(config)
    code, said = finish([*flags, "--offline-teacher", "--micro-batch-size", "1"], processes=2, folder=tmp_path)
    assert code == 0, said
    assert "(offline)" in next(line for line in said.splitlines() if line.startswith("Training"))
    for line, expected in zip(metrics_of(tmp_path / "out.run"), metrics_of(whole.run_dir), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)


def test_it_is_drawn_once_and_for_shorter_runs_too(configured: Configured):
    folder = cache_teacher(configured(teacher_draws=2))
    before = (folder / "drawn").stat().st_mtime_ns
    assert json.loads((folder / "draws.json").read_text())["windows"] == 24
    assert (folder / "drawn").stat().st_size == 24 * 32 * 2 * 2
    assert cache_teacher(configured(teacher_draws=2, max_steps=3, batch_size=8)) == folder
    assert (folder / "drawn").stat().st_mtime_ns == before
    old = (folder / "drawn").read_bytes()
    assert cache_teacher(configured(teacher_draws=2, max_steps=7)) == folder
    assert (folder / "drawn").read_bytes()[: len(old)] == old
    assert json.loads((folder / "draws.json").read_text())["windows"] == 28


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"sequence_length": 16}, {"temperature": 2.0}, {"teacher_draws": 3}, {"max_steps": 7}],
    ids=str,
)
def test_what_was_not_drawn_is_said_to_be_missing(configured: Configured, changes: dict[str, Any], tmp_path: Path):
    cache_teacher(configured(teacher_draws=2))
    with pytest.raises(
        UserError, match=r"lacks the teacher's draws for the .* give gqa-uptrain cache-teacher the same"
    ):
        uptrain(configured(**({"teacher_draws": 2, "offline_teacher": True} | changes)))
    assert not (tmp_path / "out.run").exists()


def test_a_mixture_has_draws_for_its_weights_alone(
    configured: Configured, data: Path, validation_data: Path, tmp_path: Path
):
    mixture = {"data": (str(data), str(validation_data)), "teacher_draws": 2}
    folder = cache_teacher(configured(**mixture, data_weights=(0.3, 0.7)))
    assert cache_teacher(configured(**mixture, data_weights=(3, 7))) == folder
    with pytest.raises(UserError, match="lacks the teacher's draws"):
        uptrain(configured(**mixture, data_weights=(0.7, 0.3), offline_teacher=True))
    with pytest.raises(UserError, match="lacks the teacher's draws"):
        uptrain(configured(**mixture, offline_teacher=True))
    assert uptrain(configured(**mixture, data_weights=(0.3, 0.7), offline_teacher=True)).steps == 6


def test_draws_of_one_text_are_found_where_they_always_were():
    drawing = Drawing(
        tokens="t", sequence_length=8, seed=1, teacher="p", arithmetic="torch.float32", temperature=1.0, draws=4
    )
    assert drawing.key == "teacher-85ea080897410bcf79fc98011211ef1d"


def test_what_has_no_draws_is_refused(configured: Configured, make_encoder_decoder, checkpoint, monkeypatch):
    t5 = make_encoder_decoder()
    for changes, said in (
        ({"teacher": "none"}, "there is none: teacher is none"),
        ({"teacher": "auto"}, "there is none: no gqa.json names the parent"),
        ({"checkpoint": str(t5), "teacher": str(t5)}, "cache-teacher is for decoders only"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            cache_teacher(configured(**changes))
    with pytest.raises(UserError, match="offline_teacher is for decoders only"):
        uptrain(configured(checkpoint=str(t5), teacher=str(t5), offline_teacher=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="cache-teacher is one process"):
        cache_teacher(configured())


def test_the_command(flags: list[str], tmp_path: Path, monkeypatch, capsys):
    result = CliRunner().invoke(cache_app, [*flags, "--json", "--teacher-draws", "2"])
    assert result.exit_code == 0, result.output
    folder = Path(json.loads(result.stdout)["draws"])
    assert (folder / "drawn").is_file()
    assert "Drawing from " in result.stderr
    monkeypatch.setattr("sys.argv", ["gqa-uptrain", "cache-teacher", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Run the teacher once" in capsys.readouterr().out


@pytest.fixture
def full_with(monkeypatch: pytest.MonkeyPatch):
    """A teacher for which memory is full with more than so many windows at once, from some call on."""

    def fill(most: int, after: int = 0) -> list[int]:
        hidden, asked = Halves.hidden, list[int]()

        def filling(self: Halves, **inputs: Any) -> torch.Tensor:
            asked.append(len(inputs["input_ids"]))
            if len(asked) > after and asked[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return hidden(self, **inputs)

        monkeypatch.setattr(Halves, "hidden", filling)
        return asked

    return fill


def test_memory_for_one_window_is_enough(configured: Configured, full_with, tmp_path: Path, capfd):
    whole = cache_teacher(configured(teacher_draws=2, micro_batch_size=1, cache_dir=tmp_path / "other"))
    asked = full_with(1)
    found = cache_teacher(configured(teacher_draws=2, quiet=False))
    assert asked == [4, 2, *[1] * 24]
    assert "Out of memory with 2 windows or more at once; going on with 1" in capfd.readouterr().err
    for name in ("drawn", "entropy", "draws.json"):
        assert (found / name).read_bytes() == (whole / name).read_bytes()


def test_memory_that_fills_later_costs_no_draw(configured: Configured, full_with, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("gqa.uptrain.draws._STEPS_BETWEEN_NOTES", 2)
    whole = cache_teacher(configured(teacher_draws=2, cache_dir=tmp_path / "other"))
    asked = full_with(2, after=3)
    found = cache_teacher(configured(teacher_draws=2))
    assert asked == [4, 4, 4, 4, *[2] * 8]  # what was noted after two is kept
    entropies = (np.fromfile(folder / "entropy", np.float32) for folder in (found, whole))
    np.testing.assert_allclose(*entropies, rtol=1e-5)


def test_a_teacher_that_does_not_fit_is_a_sentence(configured: Configured, full_with):
    full_with(0)
    with pytest.raises(UserError, match="one window of 32 tokens, and cache-teacher needs both on one device"):
        cache_teacher(configured(teacher_draws=2))


def test_what_was_drawn_before_a_kill_is_kept(configured: Configured, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("gqa.uptrain.draws._STEPS_BETWEEN_NOTES", 2)
    draw, steps = Drawer.__call__, list[int]()

    def killed(self: Drawer, step: int) -> Any:
        steps.append(step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return draw(self, step)

    changes = {"teacher_draws": 2, "micro_batch_size": 2}
    whole = cache_teacher(configured(**changes))
    monkeypatch.setattr(Drawer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(configured(**changes, cache_dir=tmp_path / "other"))
    assert not list((tmp_path / "other").glob("teacher-*/draws.json"))
    again = cache_teacher(configured(**changes, cache_dir=tmp_path / "other"))
    assert steps == [0, 1, 2, 3, 4, 5, *range(4, 12)]
    for name in ("drawn", "entropy", "draws.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert not list((tmp_path / "other").glob(".teacher-*"))
