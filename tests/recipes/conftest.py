"""A tiny multi-head checkpoint, text for it, and the command `gqa-run`, for the tests of the top floor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

WORDS = ["def", "class", "return", "self", "value", "for", "in", "range", "if", "else", "import", "from", "yield"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two jsonl files, `train` and `heldout`: sentences of a few words, none the same."""
    folder = tmp_path_factory.mktemp("text")
    files = {}
    for name, first, count in (("train", 0, 60), ("heldout", 1000, 8)):
        documents = [
            " ".join(WORDS[(seed * 7 + place * place) % len(WORDS)] for place in range(120))
            for seed in range(first, first + count)
        ]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return files


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """Multi-head, with tied embeddings."""
    return make_checkpoint(tie_word_embeddings=True)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, text: dict[str, Path]) -> Path:
    """A complete recipe for the tiny checkpoint: 4 KV heads to 2, four steps of training."""
    folder = tmp_path_factory.mktemp("recipes")
    path = folder / "tiny.toml"
    path.write_text(
        f"""
        description = "for tests"
        checkpoint = "{checkpoint}"
        [convert]
        groups = 2
        [uptrain]
        data = "{text["train"]}"
        validation_data = "{text["heldout"]}"
        cache_dir = "{folder / "cache"}"
        max_steps = 4
        save_every = 4
        eval_every = 4
        sequence_length = 32
        batch_size = 4
        learning_rate = 1e-2
        precision = "float32"
        [eval]
        data = "{text["heldout"]}"
        window = 32
        """
    )
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """The directory of a run that went through all stages. Not to be changed: `run` is a copy."""
    from gqa.recipes.recipe import load_recipe
    from gqa.recipes.run import run_recipe

    directory = tmp_path_factory.mktemp("runs") / "run"
    run_recipe(load_recipe(str(recipe_file), output=directory), say=[].append)
    return directory


@pytest.fixture
def run(tmp_path: Path, finished_run: Path) -> Path:
    """A finished run to do things to."""
    return shutil.copytree(finished_run, tmp_path / "run", copy_function=shutil.copy2)


@pytest.fixture
def gqa_run() -> Callable[..., Result]:
    """Runs `gqa-run` with these arguments in this process."""
    from gqa.recipes.cli import app

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
