"""The token store: what the tokenizer says, once, whoever asks."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from gqa.convert.errors import UserError
from gqa.uptrain.hashes import file_hash
from gqa.uptrain.tokenise import Text
from gqa.uptrain.tokens import TokenStore, default_cache, open_stores


def ignore(tokens: int) -> None:
    del tokens


def text_of(data: Path, checkpoint: Path, share: float = 0.0) -> Text:
    return Text(str(data), "text", None, "train", checkpoint, share)


def documents_in(store: TokenStore) -> list[list[int]]:
    ends = [*store.starts[1:], len(store)]
    return [store.tokens[start:end].tolist() for start, end in zip(store.starts, ends, strict=True)]


def test_it_holds_every_document_closed_by_the_end_of_text_token(data, checkpoint, texts, tokenizer, tmp_path: Path):
    store, held_out = open_stores(text_of(data, checkpoint), tmp_path, ignore)
    assert documents_in(store) == [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert store.tokens.dtype == np.uint16
    assert isinstance(store.tokens, np.memmap)
    assert store.largest_id == max(map(max, documents_in(store)))
    assert len(held_out) == 0


def test_a_tokenizer_that_closes_documents_itself_is_left_to_it(data, checkpoint, texts, tmp_path: Path):
    source = shutil.copytree(checkpoint, tmp_path / "ckpt")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<eos> $A <eos>", special_tokens=[("<eos>", 256)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    store, _ = open_stores(text_of(data, source), tmp_path, ignore)
    assert [(ids[0], ids[-1], ids.count(256)) for ids in documents_in(store)] == [(256, 256, 2)] * len(texts)


def test_hashes_that_are_damaged_are_a_sentence(data, checkpoint, tmp_path: Path):
    for damage in ("{", "3"):
        (tmp_path / "hashes.json").write_text(damage)
        with pytest.raises(UserError, match=r"hashes\.json is damaged .*; delete it: it is made again"):
            open_stores(text_of(data, checkpoint), tmp_path, ignore)
    (tmp_path / "hashes.json").unlink()
    assert len(open_stores(text_of(data, checkpoint), tmp_path, ignore)[0])


def test_a_second_run_reads_what_the_first_has_written(data, checkpoint, tmp_path: Path, monkeypatch):
    first, _ = open_stores(text_of(data, checkpoint), tmp_path, ignore)
    moved = Path(shutil.copy(data, tmp_path / "moved.jsonl"))
    monkeypatch.setattr("gqa.uptrain.tokens.make_store", None)
    second, _ = open_stores(text_of(moved, checkpoint), tmp_path, ignore)
    assert second.key == first.key
    np.testing.assert_array_equal(second.tokens, first.tokens)


def test_a_second_start_reads_no_text(data, checkpoint, tmp_path: Path, monkeypatch):
    """Unless the file is another one, or was changed: even to the same size, and at the same time in another inode."""
    mine = aged(Path(shutil.copy(data, tmp_path / "mine.jsonl")))
    hashed: list[str] = []
    monkeypatch.setattr("gqa.uptrain.hashes.file_hash", lambda path: hashed.append(path.name) or file_hash(path))

    def key(path: Path) -> str:
        return open_stores(text_of(path, checkpoint), tmp_path / "cache", ignore)[0].key

    first = key(mine)
    (tmp_path / "link.jsonl").symlink_to(mine)
    assert [key(mine), key(tmp_path / "link.jsonl")] == [first, first]
    assert hashed == ["mine.jsonl"]

    lines = mine.read_text().splitlines(keepends=True)
    mine.write_text("".join(reversed(lines)))
    os.utime(mine, (1e9 + 1, 1e9 + 1))
    changed = key(mine)
    assert changed != first
    swapped = aged(Path(shutil.copy(data, tmp_path / "swapped.jsonl")), 1e9 + 1)
    swapped.replace(mine)
    assert key(mine) == first
    assert hashed == ["mine.jsonl"] * 3


def test_a_file_that_was_changed_just_now_is_read_again(data, checkpoint, tmp_path: Path):
    mine, now = Path(shutil.copy(data, tmp_path / "mine.jsonl")), time.time()
    keys = set()
    for text in ("one", "two"):
        mine.write_text(json.dumps({"text": text}))
        os.utime(mine, (now, now))
        keys.add(open_stores(text_of(mine, checkpoint), tmp_path / "cache", ignore)[0].key)
    assert len(keys) == 2


def aged(path: Path, seconds: float = 1e9) -> Path:
    os.utime(path, (seconds, seconds))
    return path


def test_other_content_is_another_store(data, checkpoint, make_checkpoint, tmp_path: Path):
    def key(data: Path, checkpoint: Path, share: float = 0.0) -> str:
        return open_stores(text_of(data, checkpoint, share), tmp_path / "cache", ignore)[0].key

    longer = tmp_path / "longer.jsonl"
    longer.write_text(data.read_text() + '{"text": "more"}\n')
    plain = Path(shutil.copy(data, tmp_path / "the_same.txt"))  # read as one document
    other = make_checkpoint()
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"add_prefix_space": True}))
    keys = [key(data, checkpoint), key(longer, checkpoint), key(data, other), key(data, checkpoint, 0.5)]
    keys.append(key(plain, checkpoint))
    assert len(set(keys)) == 5


def test_a_folder_is_all_of_its_files(texts, checkpoint, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("first")
    (folder / "b.jsonl").write_text('{"text": "second"}\n')
    store, _ = open_stores(text_of(folder, checkpoint), tmp_path / "cache", ignore)
    assert len(store.starts) == 2
    (folder / "c.txt").write_text("third")
    store, _ = open_stores(text_of(folder, checkpoint), tmp_path / "cache", ignore)
    assert len(store.starts) == 3


def test_held_out_documents_are_chosen_by_their_own_content(data, checkpoint, texts, tokenizer, tmp_path: Path):
    train, held_out = open_stores(text_of(data, checkpoint, 0.3), tmp_path, ignore)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    _, again = open_stores(text_of(shuffled, checkpoint, 0.3), tmp_path, ignore)
    assert sorted(documents_in(again)) == sorted(documents_in(held_out))
    assert 0.1 * len(texts) < len(held_out.starts) < 0.5 * len(texts)
    everything = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert sorted(documents_in(train) + documents_in(held_out)) == sorted(everything)
    known = {tuple(document) for document in documents_in(train)}
    assert not known & {tuple(document) for document in documents_in(held_out)}  # repeated texts stay on one side


@pytest.mark.parametrize("launched", [False, True])
def test_two_processes_at_once_make_one_store(launched: bool, data, checkpoint, tmp_path: Path):
    """Either of them, or, if a launcher has started them, its first, though that comes later."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "time.sleep(3 * (os.environ.get('LOCAL_RANK') == '0'))\n"
        "from gqa.uptrain.tokenise import Text\n"
        "from gqa.uptrain.tokens import open_stores\n"
        "text = Text(sys.argv[1], 'text', None, 'train', Path(sys.argv[2]), 0.0)\n"
        "said = []\n"
        "store, _ = open_stores(text, Path(sys.argv[3]), said.append)\n"
        "print(len(store), bool(said))"
    )
    command = [sys.executable, "-c", code, data, checkpoint, tmp_path]
    settings = [{"LOCAL_RANK": str(rank)} if launched else {} for rank in range(2)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | more) for more in settings]
    (one, first), (two, second) = (process.communicate(timeout=120)[0].split() for process in running)
    assert one == two
    assert {first, second} == {"True", "False"}  # one has tokenised, the other has waited
    assert not launched or first == "True"
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.stem != "hashes") == ["", ".lock"]


def test_an_error_leaves_no_store(checkpoint, tmp_path: Path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        open_stores(text_of(bad, checkpoint), tmp_path / "cache", ignore)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.stem != "hashes"] == [".lock"]


def test_reading_goes_around(tmp_path: Path):
    store = TokenStore("key", np.arange(10, 20, dtype=np.uint16), np.array([0, 3, 7]), 19)
    assert store.read(8, 5).tolist() == [18, 19, 10, 11, 12]
    assert store.starts_within(8, 5).tolist() == [2]
    assert store.starts_within(8, 6).tolist() == [2, 5]
    assert store.starts_within(3, 4).tolist() == [0]
    assert store.starts_within(3, 5).tolist() == [0, 4]


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gqa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "gqa"


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text of several batches of 4 documents; a note is made after every second."""
    monkeypatch.setattr("gqa.uptrain.tokenise._DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr("gqa.uptrain.tokenise._BATCHES_BETWEEN_NOTES", 2)
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {number} " * (number % 5)}) + "\n" for number in range(40)))
    return path


def same(one: tuple[TokenStore, TokenStore], other: tuple[TokenStore, TokenStore]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.starts, b.starts) and a.largest_id == b.largest_id
        for a, b in pairs
    )


def test_several_processes_write_what_one_writes(many: Path, checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gqa.uptrain.tokenise._BATCHES_ALONE", 2)
    text = text_of(many, checkpoint, 0.3)
    alone = open_stores(text, tmp_path / "one", ignore, processes=1)
    assert same(open_stores(text, tmp_path / "two", ignore, processes=2), alone)


def test_what_was_tokenised_before_a_kill_is_kept(many: Path, checkpoint: Path, tmp_path: Path, monkeypatch):
    text = text_of(many, checkpoint, 0.3)
    whole = open_stores(text, tmp_path / "whole", ignore, processes=1)
    calls: list[int] = []

    def killed(tokens: int) -> None:
        calls.append(tokens)
        if len(calls) == 5:
            raise KeyboardInterrupt  # nothing is cleared up that a kill would not leave: see the note below

    with pytest.raises(KeyboardInterrupt):
        open_stores(text, tmp_path / "killed", killed, processes=1)
    (partial,) = (tmp_path / "killed").glob(".*.partial")
    assert json.loads((partial / "written.json").read_text())["batches"] == 4
    with (partial / "train.tokens").open("ab") as file:
        file.write(b"half a batch, which is not in the note")
    encoded: list[int] = []
    from gqa.uptrain import tokenise

    encode = tokenise._encode
    monkeypatch.setattr(tokenise, "_encode", lambda *these: encoded.append(len(these[1])) or encode(*these))
    assert same(open_stores(text, tmp_path / "killed", ignore, processes=1), whole)
    assert sum(encoded) == 40 - 4 * 4
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_text_is_read_no_further_than_it_is_tokenised(checkpoint: Path, tmp_path: Path, monkeypatch):
    """A corpus larger than memory: what has been read and not yet written is never more than a few batches."""
    monkeypatch.setattr("gqa.uptrain.tokenise._DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr("gqa.uptrain.tokenise._BATCHES_ALONE", 2)
    read, ahead = [0], []

    def endless(self: Text):
        from gqa.uptrain.tokenise import Document

        for number in range(400):
            read[0] += 1
            yield Document(f"{number:04d}", str(number))

    monkeypatch.setattr(Text, "documents", endless)
    (tmp_path / "a.jsonl").write_text("{}\n")
    written = lambda tokens: ahead.append(read[0] - tokens // 5)  # noqa: E731 - four letters and the end
    store, _ = open_stores(text_of(tmp_path / "a.jsonl", checkpoint), tmp_path / "cache", written, processes=2)
    assert len(store.starts) == 400
    assert max(ahead) <= 4 * (4 * 2 + 1)


def test_a_disk_that_is_full_is_a_sentence(many: Path, checkpoint: Path, tmp_path: Path, monkeypatch):
    import errno

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gqa.uptrain.tokenise._Writer.append", no_room)
    with pytest.raises(UserError, match="is full"):
        open_stores(text_of(many, checkpoint), tmp_path / "cache", ignore, processes=1)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.stem != "hashes"] == [".lock"]


def test_a_disk_that_fills_later_keeps_what_is_whole(many: Path, checkpoint: Path, tmp_path: Path):
    import errno

    text = text_of(many, checkpoint)
    whole = open_stores(text, tmp_path / "whole", ignore, processes=1)
    calls: list[int] = []

    def no_room(tokens: int) -> None:
        calls.append(tokens)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"is full; what is whole of it is kept in .*\.partial: free some space"):
        open_stores(text, tmp_path / "full", no_room, processes=1)
    assert list((tmp_path / "full").glob(".*.partial"))
    assert same(open_stores(text, tmp_path / "full", ignore, processes=1), whole)
