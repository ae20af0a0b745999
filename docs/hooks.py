"""What the manual takes from elsewhere while it is built, so that nothing stands in it twice.

Whole pages of the repository (contributing, changes, measurements), and, where a page says `<!-- output of: ... -->`,
what that command prints.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BROUGHT = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
MODULES = {
    "gqa": "gqa.recipes.map",
    "gqa-convert": "gqa.convert",
    "gqa-eval": "gqa.eval",
    "gqa-export": "gqa.convert.export",
    "gqa-push": "gqa.convert.push",
    "gqa-run": "gqa.recipes",
    "gqa-uptrain": "gqa.uptrain",
}
_OUTPUT = re.compile(r"^<!-- output of: (.+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Bring in pages, and the pictures beside them."""
    pictures = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks").glob("*.svg"))]
    for name in [*BROUGHT, *pictures]:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what commands print."""
    del page, config, files
    return _OUTPUT.sub(lambda found: f"```console\n$ {found[1]}\n{_output(found[1])}```", markdown)


def _output(command: str) -> str:
    name, *arguments = shlex.split(command)
    called = [sys.executable, "-m", MODULES[name], *arguments]
    done = subprocess.run(called, capture_output=True, text=True, cwd=ROOT, timeout=120)
    if done.returncode:
        raise PluginError(f"`{command}` ended with {done.returncode}: {done.stderr}")
    return done.stdout.replace(f"{ROOT}/", "")  # where the manual happens to be built is nobody's concern
