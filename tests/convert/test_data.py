"""Reading documents from every kind of source, and the sentence for each way it can be wrong."""

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError

from gqa.convert.data import hub_names, local_path, read_documents
from gqa.convert.errors import UserError


def read(path: Path | str, **given) -> list[str]:
    return list(read_documents(str(path), **given))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_bytes("line\r\nübrig\n".encode())
    (tmp_path / "a.jsonl").write_text('{"text": "first", "id": 1}\n\n{"text": "", "id": 2}\n{"text": "\\u00fc"}')
    table = pyarrow.table({"text": ["red", "green"], "id": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=1)
    (tmp_path / "notes.md").write_text("not data")
    return tmp_path


def test_a_text_file_is_one_document_byte_for_byte(folder: Path):
    assert read(folder / "b" / "one.txt") == ["line\r\nübrig\n"]
    assert read(folder / "notes.md") == ["not data"]


def test_json_lines_hold_a_document_each_and_blank_lines_none(folder: Path):
    assert read(folder / "a.jsonl") == ["first", "", "ü"]


def test_parquet_holds_a_document_a_row(folder: Path):
    assert read(folder / "c.parquet") == ["red", "green"]


def test_a_folder_is_read_in_the_order_of_its_paths(folder: Path):
    assert read(folder) == ["first", "", "ü", "line\r\nübrig\n", "red", "green"]


def test_documents_are_read_as_they_are_asked_for(tmp_path: Path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "good"}\n{"text": bad}\n')
    documents = read_documents(str(path))
    assert next(documents) == "good"
    with pytest.raises(UserError, match=r"half\.jsonl:2 is not JSON"):
        next(documents)


def test_a_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*given, **more):
        asked.append((given, more))
        return datasets.IterableDataset.from_generator(lambda: iter([{"body": "one"}, {"body": "two"}]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("org/name", text_column="body", subset="small", split="validation") == ["one", "two"]
    assert asked == [(("org/name", "small"), {"split": "validation", "streaming": True})]
    with pytest.raises(UserError, match=r"split test, row 1: no column 'bodi' .did you mean 'body'..; there are: body"):
        read("org/name", text_column="bodi")


@pytest.mark.parametrize("error", [DatasetNotFoundError, ValueError, ConnectionError])
def test_a_dataset_that_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    def load_dataset(*given, **more):
        raise error("Nothing there.\nA long story.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^the dataset org/name \(split test\) can't be loaded: Nothing there\.$"):
        read("org/name")


def test_a_file_wins_over_a_dataset_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("here")
    assert local_path("org/name") == Path("org/name")
    assert read("org/name") == ["here"]


@pytest.mark.parametrize(
    "name", ["nowhere", "nowhere.txt", "./org/name", "a/b/c", "org/name.jsonl", "/org/name", "~/org", "here/name"]
)
def test_what_is_neither_a_file_nor_a_name_is_an_error_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=r"no such file or folder: .*; a dataset on the Hub is named org/name"):
        read_documents(name)


def test_a_name_close_by_is_suggested(folder: Path):
    with pytest.raises(UserError, match=r"did you mean '.*/a\.jsonl'"):
        read_documents(str(folder / "aa.jsonl"))


def wrong(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


BAD_LINES = {
    b'{"text": "a"}\n{"text": "b"': ":2 is not JSON (Expecting ',' delimiter at column 13); mend the line",
    b'["text"]': ':1 holds a list; every line must be an object like {"text": "..."}',
    b'{"body": "a", "id": 1}': ":1: no column 'text'; there are: body, id (--text-column)",
    b'{"texts": "a"}': ":1: no column 'text' (did you mean 'texts'?); there are: texts (--text-column)",
    b'{"text": null}': ":1: 'text' holds nothing (null), not text; choose another with --text-column",
    b'{"text": ["a"]}': ":1: 'text' holds a value of type list, not text; choose another with --text-column",
    b'{"text": "\\ud83e"}': ":1: character 0 is half of a surrogate pair; mend the line",
    b'{"text": "ab"}\n{"text": "\xff"}\n': " is not UTF-8 text (byte 0xff at offset 25); convert it to UTF-8",
    b"": " is empty; name data with at least one document in it",
    b"\n \n": " is empty; name data with at least one document in it",
}


@pytest.mark.parametrize("content", BAD_LINES)
def test_a_bad_line_is_named(content: bytes, tmp_path: Path):
    assert wrong(tmp_path / "bad.jsonl", content) == BAD_LINES[content]


def test_bad_text_is_named_by_its_offset(tmp_path: Path):
    expected = " is not UTF-8 text (byte 0x80 at offset 3); convert it to UTF-8"
    assert wrong(tmp_path / "bad.txt", b"ab\n\x80") == expected
    assert wrong(tmp_path / "bad.txt", b"") == " is empty; name data with at least one document in it"


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    assert wrong(tmp_path / "bad.parquet", b"PAR1 and then nothing").startswith(" is not a Parquet file, or a damaged")
    assert wrong(tmp_path / "bad.parquet", b"").startswith(" is not a Parquet file, or a damaged one")


def test_parquet_columns_and_rows_are_named(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None], "id": [1, 2]}), path)
    with pytest.raises(UserError, match=r"rows\.parquet: no column 'text'; there are: body, id"):
        read(path)
    with pytest.raises(UserError, match=r"rows\.parquet, row 2: 'body' holds nothing"):
        read(path, text_column="body")
    with pytest.raises(UserError, match=r"rows\.parquet, row 1: 'id' holds a value of type int"):
        read(path, text_column="id")


def test_a_folder_without_data_is_an_error(tmp_path: Path):
    (tmp_path / "notes.md").write_text("not data")
    with pytest.raises(UserError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        read(tmp_path)


def test_an_unreadable_file_is_a_sentence(tmp_path: Path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(UserError):
        read(tmp_path / "loop.txt")


def test_long_files_are_read_whole(tmp_path: Path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(5000)))
    assert read(path) == [str(number) for number in range(5000)]


def test_what_is_on_the_hub_is_told_from_a_folder_of_that_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "text").mkdir(parents=True)
    named = ["data/text", "org/text", None, "self", "gone.jsonl", str(tmp_path)]
    assert hub_names(named) == ["org/text"]


def test_a_name_that_no_disk_can_look_up_is_a_sentence():
    with pytest.raises(UserError, match=r"^a{60}\.\.\. can't be looked up \(File name too long\); name another path$"):
        local_path("a" * 300)
