"""What a run remembers of its stages."""

from pathlib import Path

import pytest

from gqa.convert.errors import UserError
from gqa.recipes.ledger import FILE_NAME, Ledger, data_identity, identity, locked, stage_key


def test_a_stage_is_up_to_date_when_key_and_output_are_what_they_were(tmp_path: Path):
    output = tmp_path / "text.jsonl"
    output.write_text("a")
    ledger = Ledger(tmp_path)
    assert not ledger.up_to_date("corpus", "key", output)
    ledger.begin("corpus", "key")
    assert not ledger.up_to_date("corpus", "key", output)
    ledger.end("corpus", "key", output)
    again = Ledger(tmp_path)
    assert again.up_to_date("corpus", "key", output)
    assert not again.up_to_date("corpus", "other", output)
    output.write_text("b")
    assert not again.up_to_date("corpus", "key", output)
    output.unlink()
    assert not again.up_to_date("corpus", "key", output)


def test_a_stage_that_began_can_be_told_from_one_that_ended_or_never_was(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert not ledger.knows("uptrain")
    ledger.begin("uptrain", "key")
    again = Ledger(tmp_path)
    assert again.knows("uptrain")
    assert again.began("uptrain", "key")
    assert not again.began("uptrain", "other")


def test_keys_tell_options_and_inputs_apart_and_nothing_else():
    key = stage_key({"a": 1, "path": Path("x")}, {"in": "sha256:1"})
    assert key == stage_key({"path": Path("x"), "a": 1}, {"in": "sha256:1"})
    others = [stage_key({"a": 2, "path": Path("x")}, {"in": "sha256:1"}), stage_key({"a": 1}, {"in": "sha256:1"})]
    assert len({key, *others, stage_key({"a": 1, "path": Path("x")}, {"in": "sha256:2"})}) == 4


def test_identity_covers_every_byte_and_every_name(tmp_path: Path):
    def make(name: str, files: dict[str, str]) -> str | None:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return identity(tmp_path / name)

    one = make("one", {"a": "1", "b/c": "2"})
    assert make("same", {"a": "1", "b/c": "2"}) == one
    assert len({one, make("byte", {"a": "1", "b/c": "3"}), make("name", {"a": "1", "b/d": "2"})}) == 3
    assert identity(tmp_path / "gone") is None
    assert data_identity("org/name") == "name:org/name"
    assert data_identity(str(tmp_path / "one" / "a")) == data_identity(str(tmp_path / "same" / "a"))


def test_data_in_the_home_directory_go_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("a")
    assert data_identity("~/a.jsonl") == data_identity(str(tmp_path / "a.jsonl"))


def test_a_stage_that_did_not_come_about_leaves_what_was_known(tmp_path: Path):
    ledger = Ledger(tmp_path)

    def interrupted(key: str, errors: type[BaseException] = BaseException) -> None:
        with ledger.unless_made("convert", errors):
            ledger.begin("convert", key)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted("key")
    assert not ledger.knows("convert")
    ledger.begin("convert", "key")
    with pytest.raises(KeyboardInterrupt):
        interrupted("other")
    assert Ledger(tmp_path).began("convert", "key")
    with pytest.raises(KeyboardInterrupt):
        interrupted("other", UserError)
    assert Ledger(tmp_path).began("convert", "other")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"convert": 3}', '{"convert": {"key": "k"}}'])
def test_a_damaged_ledger_is_said_and_can_be_forgiven(tmp_path: Path, text: str):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=r"stages\.json is damaged; run again with --force"):
        Ledger(tmp_path)
    assert not Ledger(tmp_path, forgive=True).knows("convert")


def test_a_directory_is_held_by_one_run_at_a_time(tmp_path: Path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another gqa-run works in"), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_file_can_not_be_a_run_directory(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output"), locked(tmp_path / "file"):
        pass
