"""The demo's corpus: what is held out is never trained on."""

import json
from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.recipes.demo.corpus import split, write_corpus


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("os.py", "train"),
        ("asyncio/base_events.py", "train"),
        ("test/test_os.py", "train"),
        ("json/decoder.py", "held out"),
        ("textwrap.py", "held out"),
        ("zipfile/_path/glob.py", "held out"),
        ("test/test_json/test_decode.py", None),
        ("test/test_textwrap.py", None),
        ("test/test_zipfile64.py", None),
        ("test/string_tests.py", None),
        ("distutils/tokenize.py", None),
    ],
)
def test_a_module_and_its_tests_never_meet_in_training(path: str, part: str | None):
    assert split(Path(path)) == part


def test_the_files_hold_a_module_a_line(tmp_path: Path):
    library = tmp_path / "library"
    sources = {
        "os.py": "import abc\n", "json/decoder.py": "held = 'out'\n", "test/test_json/test_decode.py": "neither\n",
        "encodings/table.py": "skipped\n", "_sysconfigdata__linux.py": "paths of this machine\n", "empty.py": " \n",
    }  # fmt: skip
    for name, source in sources.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(source)
    (library / "bad.py").write_bytes(b"\xff not UTF-8")
    train, held_out = write_corpus(tmp_path, library)
    assert [json.loads(line) for line in train.read_text().splitlines()] == [{"text": "import abc\n"}]
    assert [json.loads(line) for line in held_out.read_text().splitlines()] == [{"text": "held = 'out'\n"}]


def test_a_python_without_sources_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no standard-library source under"):
        write_corpus(tmp_path, tmp_path / "nothing")
