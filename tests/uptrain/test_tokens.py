"""The token store: what the tokenizer says, once, whoever asks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from gqa.convert.errors import UserError
from gqa.uptrain.tokens import Text, TokenStore, default_cache, open_stores


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


def test_a_second_run_reads_what_the_first_has_written(data, checkpoint, tmp_path: Path, monkeypatch):
    first, _ = open_stores(text_of(data, checkpoint), tmp_path, ignore)
    moved = Path(shutil.copy(data, tmp_path / "moved.jsonl"))
    monkeypatch.setattr("gqa.uptrain.tokens._tokenise", None)
    second, _ = open_stores(text_of(moved, checkpoint), tmp_path, ignore)
    assert second.key == first.key
    np.testing.assert_array_equal(second.tokens, first.tokens)


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


def test_two_processes_at_once_make_one_store(data, checkpoint, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path\n"
        "from gqa.uptrain.tokens import Text, open_stores\n"
        "text = Text(sys.argv[1], 'text', None, 'train', Path(sys.argv[2]), 0.0)\n"
        "said = []\n"
        "store, _ = open_stores(text, Path(sys.argv[3]), said.append)\n"
        "print(len(store), bool(said))"
    )
    command = [sys.executable, "-c", code, data, checkpoint, tmp_path]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (one, first), (two, second) = (process.communicate(timeout=120)[0].split() for process in running)
    assert one == two
    assert {first, second} == {"True", "False"}  # one has tokenised, the other has waited
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]


def test_an_error_leaves_no_store(checkpoint, tmp_path: Path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        open_stores(text_of(bad, checkpoint), tmp_path / "cache", ignore)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


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
