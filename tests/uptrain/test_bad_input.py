"""What is wrong with the input is said in one sentence, and nothing is left behind."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from typer.testing import CliRunner

from gqa.convert.errors import UserError
from gqa.uptrain import uptrain
from gqa.uptrain.cli import app
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.zero import configure

Configured = Callable[..., UptrainConfig]


def refused(config: UptrainConfig) -> str:
    """The sentence, after making sure that there is no trace of the run."""
    assert config.output
    existed = config.output.exists()
    with pytest.raises(UserError) as caught:
        uptrain(config)
    assert config.output.exists() == existed
    assert not config.output.with_name(f"{config.output.name}.run").exists()
    assert not list(config.output.parent.glob(".*"))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def jsonl(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_data_that_is_not_there(configured: Configured, tmp_path: Path):
    assert "no such file or folder" in refused(configured(data=str(tmp_path / "missing.jsonl")))
    assert "no such file or folder" in refused(configured(validation_data=str(tmp_path / "missing.jsonl")))


def test_data_without_the_column(configured: Configured):
    assert "no column 'content'" in refused(configured(text_column="content"))


def test_data_shorter_than_a_sequence(configured: Configured, tmp_path: Path):
    short = jsonl(tmp_path / "short.jsonl", "abc", "de")
    said = refused(configured(data=short))
    assert "short.jsonl holds 7 tokens; a sequence of 32 needs more" in said
    assert "validation_tokens 0" in refused(configured(validation_data=short))


def test_a_held_out_share_that_is_too_small(configured: Configured):
    said = refused(configured(validation_data=None, validation_share=1e-9))
    assert "raise validation_share, give validation_data, or turn validation off" in said


def test_everything_held_out(configured: Configured):
    assert "holds 0 tokens" in refused(configured(validation_data=None, validation_share=1.0))


def test_validation_of_less_than_a_sequence(configured: Configured):
    assert "validation_tokens 31 is less than a sequence, 32" in refused(configured(validation_tokens=31))


def test_a_sequence_beyond_the_model(configured: Configured):
    said = refused(configured(sequence_length=129, batch_size=2))
    assert "sequence_length 129 is beyond the model's longest sequence, 128" in said


def test_batch_tokens_that_are_no_whole_sequences(configured: Configured):
    said = refused(configured(batch_size=None, batch_tokens=100))
    assert "batch_tokens 100 is not a multiple of sequence_length 32; take 96 or 128" in said


def test_a_batch_that_the_processes_cannot_share(configured: Configured, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "3 processes can't share a batch of 4 sequences equally; take 3 or 6" in refused(configured())


def test_a_tokenizer_of_another_model(make_checkpoint, configured: Configured):
    source = make_checkpoint(vocab_size=200, eos_token_id=1, pad_token_id=1)
    said = refused(configured(checkpoint=str(source)))
    assert "its embeddings have 200 rows; it is not the tokenizer of this model" in said


def test_no_tokenizer(make_checkpoint, configured: Configured):
    source = make_checkpoint()
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(configured(checkpoint=str(source)))


def test_no_checkpoint(configured: Configured, tmp_path: Path):
    assert "no such directory" in refused(configured(checkpoint=str(tmp_path / "missing")))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(configured(checkpoint=str(tmp_path / "empty")))


def test_a_checkpoint_without_weights(make_checkpoint, configured: Configured):
    source = make_checkpoint()
    (source / "model.safetensors").unlink()
    assert "weights" in refused(configured(checkpoint=str(source)))


def test_an_output_that_exists(configured: Configured, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("here")
    assert "exists; choose another with --output, or replace it with --overwrite" in refused(configured())
    assert (tmp_path / "out" / "precious").read_text() == "here"


def test_an_output_inside_what_is_read(make_checkpoint, configured: Configured, data: Path, tmp_path: Path):
    source = make_checkpoint()
    before = sorted(source.iterdir())
    for output in (source, source / "out", source.parent):
        with pytest.raises(UserError, match="is the input"):
            uptrain(configured(checkpoint=str(source), output=output, overwrite=True))
    with pytest.raises(UserError, match="is the input"):
        uptrain(configured(checkpoint=str(source), run_dir=source / "run"))
    (tmp_path / "out").mkdir()
    inside = jsonl(tmp_path / "out" / "text.jsonl", "abc" * 40)
    assert "is the input" in refused(configured(data=inside, overwrite=True))
    assert sorted(source.iterdir()) == before


def test_an_output_where_nothing_may_be_written(configured: Configured, tmp_path: Path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere, so the system's answer to anybody else is given in its place
        monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != tmp_path / "closed")
    with pytest.raises(UserError, match="no permission"):
        uptrain(configured(output=tmp_path / "closed" / "out"))


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(configured: Configured, where: str, tmp_path: Path):
    (tmp_path / "file").write_text("here")
    said = refused(configured(cache_dir=tmp_path / where))
    assert f"the cache {tmp_path / where} can't be written" in said
    assert "choose another with --cache-dir" in said


def test_a_run_directory_that_cannot_be_one(configured: Configured, tmp_path: Path):
    (tmp_path / "file").write_text("here")
    for run_dir, said in (
        ("file", "is a file or a link; choose another with --run-dir"),
        ("out/run", "inside it, or around it; choose another with --run-dir"),
        ("file/below", "no permission to write the run into"),
    ):
        assert said in refused(configured(run_dir=tmp_path / run_dir))
    assert (tmp_path / "file").read_text() == "here"


def test_a_run_directory_where_nothing_may_be_written(configured: Configured, tmp_path: Path, monkeypatch):
    run = tmp_path / "closed"
    run.mkdir(mode=0o500)
    if os.geteuid() == 0:  # as above
        monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != run)
    assert f"no permission to write the run into {run}; choose another with --run-dir" in refused(
        configured(run_dir=run)
    )
    opened = Path.open

    def closed(self: Path, *how: Any, **more: Any) -> Any:
        if self.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *how, **more)

    monkeypatch.setattr(os, "access", lambda *_, **__: True)  # it is closed after that was asked
    monkeypatch.setattr(Path, "open", closed)
    assert f"no permission for {run / '.lock'}" in refused(configured(run_dir=run))


def test_a_disk_that_fills_while_saving_keeps_the_last_checkpoint(configured: Configured, tmp_path: Path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    save: Callable[..., object] = dcp.save  # pyright: ignore[reportPrivateImportUsage]
    saved: list[object] = []

    def fill(state: Any, **where: Any) -> object:
        saved.append(where)
        if len(saved) > 1:
            failure = OSError(errno.ENOSPC, "No space left on device")
            raise CheckpointException("save", {0: (failure, StackSummary())})
        return save(state, **where)

    monkeypatch.setattr(dcp, "save", fill)
    config = configured(max_steps=4, save_every=1)
    with pytest.raises(UserError, match="is full"):
        uptrain(config)
    assert config.output
    folder = config.output.with_name(f"{config.output.name}.run") / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-1"]
    monkeypatch.undo()
    assert uptrain(config).steps == 4


def test_a_tracker_that_is_not_installed(configured: Configured, monkeypatch):
    monkeypatch.setattr("gqa.uptrain.prepare.find_spec", {}.get)
    assert "the tracker wandb is not installed; pip install 'gqa[wandb]'" in refused(configured(trackers=("wandb",)))


def test_deepspeed(configured: Configured, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("gqa.uptrain.prepare.find_spec", {"deepspeed": "here"}.get)
    assert "compile and DeepSpeed don't go together" in refused(configured(compile=True))
    monkeypatch.setattr("gqa.uptrain.prepare.find_spec", {}.get)
    assert "DeepSpeed is not installed; pip install 'gqa[deepspeed]'" in refused(configured())


@pytest.mark.parametrize(
    ("zero", "said"),
    [({"stage": 2}, "says stage 2;"), ({"stage": 3, "offload_param": {"device": "cpu"}}, "stage 3 with offloading;")],
)
def test_another_deepspeed_than_zero3(zero: dict[str, Any], said: str):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    accelerator: Any = SimpleNamespace(deepspeed_plugin=plugin)
    with pytest.raises(UserError, match=said):
        configure(accelerator, 1.0, 4)


def test_no_compiler(configured: Configured, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compile needs a C++ compiler" in refused(configured(compile=True))


def test_a_checkpoint_of_nothing_but_nan(make_checkpoint, configured: Configured, tmp_path: Path):
    source = make_checkpoint()
    weights = load_file(source / "model.safetensors")
    save_file({name: tensor * math.nan for name, tensor in weights.items()}, source / "model.safetensors")
    with pytest.raises(UserError, match="after 0 steps the validation loss is nan"):
        uptrain(configured(checkpoint=str(source)))
    assert not (tmp_path / "out").exists()


def test_a_run_that_another_process_is_at(configured: Configured, tmp_path: Path):
    run = tmp_path / "out.run"
    run.mkdir()
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is at work on the run"):
            uptrain(configured())
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_an_attention_that_is_not_installed(configured: Configured):
    assert "attention flash_attention_2 can't be used" in refused(configured(attention="flash_attention_2"))


def test_resuming_what_is_no_checkpoint(configured: Configured, tmp_path: Path):
    assert "is not a complete checkpoint of a run" in refused(configured(resume=str(tmp_path)))


def test_a_run_json_that_is_damaged(configured: Configured, tmp_path: Path):
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"holds a run already, and its run\.json can't be read"):
        uptrain(configured())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-steps", "0"], "max_steps must be above 0, got 0"),
        (["--max-tokens", "5"], "max_tokens and max_steps are both budgets"),
        (["--trackers", "mlflow"], "trackers"),
        (["--precision", "fp8"], "precision"),
        (["--text-column", "body"], "no column 'body'"),
        (["--recipe", "missing.toml"], "missing.toml can't be read"),
    ],
    ids=str,
)
def test_the_command_says_it_and_exits_with_2(flags: list[str], words: list[str], said: str, tmp_path: Path):
    result = CliRunner().invoke(app, [*flags, *words])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_nothing_at_all_is_refused_too():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "is needed and not given" in result.stderr


RECIPES: dict[str, tuple[str, str]] = {
    "extends": ('extends = "paper"\n[uptrain]\nmax_steps = 3\n', "which only gqa-run puts together"),
    "no table": ("[convert]\ngroups = 2\n", "has no table [uptrain]; it has: convert"),
    "no TOML": ("[uptrain\n", "is not TOML"),
    "unknown key": ("[uptrain]\nlearning_rat = 1.0\n", "did you mean 'learning_rate'"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_cannot_be_read(name: str, flags: list[str], tmp_path: Path):
    text, said = RECIPES[name]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    result = CliRunner().invoke(app, [*flags, "--recipe", str(recipe)])
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
