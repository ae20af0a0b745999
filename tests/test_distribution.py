"""What a user installs: the archives hold the packages whole and nothing else, and what is installed from them works
without the repository.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["convert", "eval", "uptrain", "recipes"]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
CLEAN = {"PATH": "/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}


def files_of(folder: Path) -> set[str]:
    """Names of the floors' files, as they lie in the repository."""
    found = {path for floor in FLOORS for path in (folder / floor).rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts}


def build(kind: str, source: Path, output: Path) -> Path:
    """One archive, by the build backend itself, which leaves build/ and *.egg-info in `source`."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300, cwd=source, env=CLEAN)
    (archive,) = output.glob("gqa-*.tar.gz" if kind == "sdist" else "gqa-*.whl")
    return archive


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, from a copy of what the repository has."""
    place = tmp_path_factory.mktemp("sdist")
    source = place / "source"
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, source / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build("sdist", source, place)


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the source archive."""
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return place / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from the source archive, as pip makes it."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel and, so that nothing is fetched, with what this one depends on."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=300)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # A path in a .pth file is not searched for .pth files of its own, so this checkout stays out of it.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return environment / "bin"


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=CLEAN | {"HOME": str(cwd)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_archive_can_build_all_there_is(unpacked: Path):
    assert files_of(unpacked) == files_of(ROOT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_wheel_holds_gqa_whole_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    ours = {name for name in held if ".dist-info/" not in name}
    assert ours == {f"gqa/{name}" for name in files_of(ROOT)}
    assert {f"gqa/{floor}/py.typed" for floor in FLOORS} <= ours


def test_every_command_is_installed_and_none_of_it_is_this_checkout(installed: Path, tmp_path: Path):
    assert {path.name for path in installed.glob("gqa*")} == set(SCRIPTS)
    code = (
        "from importlib.util import find_spec; import gqa.convert; print(gqa.convert.__file__);"
        f"assert not [name for name in {FLOORS!r} if find_spec(name)]"
    )
    place = run(installed / "python", "-c", code, cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)
    assert "gqa-convert" in run(installed / "gqa", cwd=tmp_path)


def test_what_is_installed_converts_the_checkpoint_that_comes_with_it(installed: Path, tmp_path: Path):
    code = "from gqa.recipes.run import EMBEDDED; print(EMBEDDED['embedded:demo'])"
    embedded = run(installed / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(embedded).is_relative_to(installed.parent)
    run(installed / "gqa-convert", "-g", "2", embedded, "-o", "out", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_key_value_heads"] == 2
    assert "llama2-7b-gqa8" in run(installed / "gqa-run", "--list", cwd=tmp_path)
    pushed = run(installed / "gqa-push", "out", "me/out", "--license", "apache-2.0", "--dry-run", cwd=tmp_path)
    assert "would go to me/out; nothing was sent." in pushed


PROGRAM = """
from gqa.convert import CalibrationOptions, convert_checkpoint
from gqa.convert.push import push_checkpoint
from gqa.eval import EvalOptions, evaluate_checkpoints
from gqa.recipes import load_recipe, run_recipe
from gqa.uptrain import UptrainConfig, uptrain

done = convert_checkpoint("ckpt", groups=8, calibration=CalibrationOptions(data="text.jsonl"))
reveal_type(done.output)
reveal_type(uptrain(UptrainConfig(checkpoint="ckpt", data="text.jsonl", max_steps=1)).output)
reveal_type(evaluate_checkpoints([done.output], EvalOptions(data="text.jsonl")).to_json())
reveal_type(run_recipe(load_recipe("demo")))
push_checkpoint("ckpt")
convert_checkpoint("ckpt", groups="eight")
"""


def test_a_type_checker_knows_what_is_installed(installed: Path, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", installed / "python", "program.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    said = [(line["severity"], line["range"]["start"]["line"], line["message"]) for line in
            json.loads(done.stdout)["generalDiagnostics"]]  # fmt: skip
    types = [message.partition(" is ")[2] for severity, _, message in said if severity == "information"]
    assert types == ['"Path"', '"Path"', '"str"', '"dict[str, bool]"']
    assert [line for severity, line, _ in said if severity == "error"] == [12, 13]
