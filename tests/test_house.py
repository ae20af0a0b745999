"""The house rules that no linter knows: which floor may import which, and what a command may import early."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["convert", "eval", "uptrain", "recipes"]  # each may import itself and those before it
HEAVY = ["torch", "transformers", "datasets", "accelerate"]  # a second each; `--help` must not wait for them
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def name_of(path: Path) -> str:
    """`gqa.convert.cli` for convert/cli.py, `gqa.convert` for convert/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["gqa", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports; `from a import b` gives `a` and `a.b`, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor_of(module: str) -> int | None:
    """The floor's number for a module of ours, None for anybody else's."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if parts[0] == "gqa" and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_opens_with_a_docstring_and_imports_only_downwards(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the first statement says what the module owns"
    own = floor_of(name_of(path))
    assert own is not None
    upwards = [module for module in imported(tree) if (floor := floor_of(module)) is not None and floor > own]
    assert upwards == []


def test_every_folder_is_listed_as_a_package():
    folders = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert {path.parent for path in MODULES} == {path.parent for path in MODULES if path.name == "__init__.py"}


def test_importing_a_command_leaves_the_heavy_packages_alone():
    modules = [f"{target.split(':')[0].rpartition('.')[0]}.{end}" for target in SCRIPTS.values() for end in ("cli", "")]
    code = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module.rstrip('.'))\n"
        f"    found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not found, f'{module} imports {found} at module level; import them inside the function'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example(script: str, tmp_path: Path):
    package = SCRIPTS[script].partition(":")[0].removesuffix(".cli")
    command = [sys.executable, "-m", package, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    examples = re.findall(rf"^ +(?:\$ )?(?:{script}|accelerate launch) .+$", done.stdout, flags=re.MULTILINE)
    assert examples, f"no line of {script} --help shows how to call it"


def test_the_tables_in_the_manual_are_those_of_the_families():
    command = [sys.executable, ROOT / "benchmarks" / "families_table.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    assert len(links) > 10


def test_the_installed_scripts_are_those_of_the_project():
    installed = {
        entry.name: entry.value for entry in importlib.metadata.distribution("gqa").entry_points
        if entry.group == "console_scripts"
    }  # fmt: skip
    assert installed == SCRIPTS


def test_the_folders_are_not_importable_by_their_bare_names(tmp_path: Path):
    code = f"from importlib.util import find_spec; assert not [name for name in {FLOORS!r} if find_spec(name)]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
