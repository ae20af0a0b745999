"""`gqa-push` against a server with the Hub's endpoints: what arrives there, what stays here, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from refusals import said
from transformers import AutoModelForCausalLM

from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import fingerprint, read_stages, stages_text
from gqa.convert.rewrite import convert

EDITED = "---\nlicense: mit\n---\n\n# In my own words\n"


def renamed_source(checkpoint: Path, path: str) -> None:
    """Let gqa.json say that the conversion's input lay elsewhere."""
    stages = read_stages(checkpoint)
    stages[0]["source"]["path"] = path
    (checkpoint / "gqa.json").write_text(stages_text(stages))


def test_what_is_published_loads_and_computes_the_same(hub, environment, converted, token, tmp_path):
    pushing = [sys.executable, "-m", "gqa.convert.push", converted, "me/tiny", "--json"]
    done = subprocess.run(
        pushing, cwd=tmp_path, env=environment | {"HF_TOKEN": token}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.url}/me/tiny"
    load = (
        "import torch; from transformers import AutoModelForCausalLM as A;"
        "model = A.from_pretrained('me/tiny');"
        "torch.save(model(torch.arange(20)[None]).logits, 'logits.pt')"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    here = AutoModelForCausalLM.from_pretrained(converted)
    assert here.config.num_key_value_heads == 2
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), here(torch.arange(20)[None]).logits)


def test_the_repository_is_the_directory_with_its_card_and_every_hash(hub, push, converted):
    result = push(converted, "me/tiny")
    assert result.exit_code == 0, result.output
    there = hub.repos["me/tiny"].files()
    assert there == {".gitattributes": b""} | {path.name: path.read_bytes() for path in converted.iterdir()}
    files = json.loads(there["gqa.json"])["stages"][-1]["files"]
    assert files.keys() == there.keys() - {".gitattributes", "README.md", "gqa.json"}
    for name, record in files.items():
        assert record == {"size": len(there[name]), "sha256": hashlib.sha256(there[name]).hexdigest()}
    card = ModelCard(there["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "mit",
        "language": "en",
        "pipeline_tag": "text-generation",
        "tags": ["gqa"],
    }
    assert "2 key/value heads in place of 4" in card.text


def test_a_second_push_sends_nothing_anew(hub, push, converted):
    assert push(converted, "me/tiny").exit_code == 0
    first, hub.asked = hub.repos["me/tiny"].branches["main"], []
    assert push(converted, "me/tiny").exit_code == 0
    assert hub.repos["me/tiny"].branches["main"] == first
    assert hub.count("PUT") == hub.count("POST .*/commit/") == 0


def test_a_branch_and_a_tag(hub, push, converted):
    result = push(converted, "me/tiny", "--revision", "gqa2", "--tag", "v1", "--json")
    repo = hub.repos["me/tiny"]
    assert json.loads(result.stdout)["commit"] == repo.branches["gqa2"] == repo.tags["v1"]
    assert list(repo.files("main")) == [".gitattributes"]
    assert 'from_pretrained("me/tiny", revision="gqa2"' in repo.files("v1")["README.md"].decode()
    assert push(converted, "me/tiny", "--revision", "gqa2", "--tag", "v1").exit_code == 0
    assert "has a tag v1 already, on commit" in said(push(converted, "me/tiny", "--tag", "v1"))
    assert list(repo.files("main")) == [".gitattributes"]


def test_private_is_private(hub, push, converted):
    assert push(converted, "me/tiny", "--private").exit_code == 0
    assert hub.repos["me/tiny"].private
    hub.repos["me/tiny"].private = False
    hub.asked = []
    assert "me/tiny is there and public" in said(push(converted, "me/tiny", "--private"))
    assert hub.count("(PUT|POST)") == 0


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(hub, push, converted, licensed, tmp_path):
    convert(licensed, tmp_path / "sharded", ConvertOptions(groups=2, max_shard_size="20kB"))
    assert push(tmp_path / "sharded", "me/tiny").exit_code == 0
    repo = hub.repos["me/tiny"]
    repo.add("main", repo.files() | {"picture.png": b"theirs"})
    result = push(converted, "me/tiny")
    assert "Deleted there, left by an earlier push: model-00001-of-0000" in result.stdout
    there = repo.files()
    assert [name for name in there if "model" in name and "safetensors" in name] == ["model.safetensors"]
    assert there["picture.png"] == b"theirs"


def test_the_original_is_never_overwritten(hub, push, converted, licensed, tmp_path):
    commit = "0" * 40
    renamed_source(converted, f"/home/me/.cache/huggingface/hub/models--me--parent/snapshots/{commit}")
    assert "Me/Parent is the original, which stays as it is" in said(push(converted, "Me/Parent"))
    assert "me/other is the original" in said(push(converted, "me/other", "--base-model", "me/other"))
    hub.add("me/theirs", {"config.json": b"{}", "model.safetensors": b"weights"})
    assert "me/theirs holds a model that gqa did not make" in said(push(converted, "me/theirs"))
    assert hub.count("(PUT|POST)") == 0
    assert push(converted, "me/tiny").exit_code == 0
    card = ModelCard(hub.repos["me/tiny"].files()["README.md"].decode())
    assert (card.data.get("base_model"), card.data.get("base_model_relation")) == ("me/parent", "finetune")
    convert(converted, tmp_path / "mqa", ConvertOptions(groups=1))  # from a copy of what is published
    assert "me/tiny is what this checkpoint was converted from" in said(push(tmp_path / "mqa", "me/tiny"))


def test_a_card_that_was_edited_here_is_sent_as_it_is(hub, push, converted):
    assert push(converted, "me/tiny").exit_code == 0
    (converted / "README.md").write_text(EDITED)
    result = push(converted, "me/other")
    assert "README.md was edited and is sent as it is" in result.stdout
    assert hub.repos["me/other"].files()["README.md"].decode() == EDITED == (converted / "README.md").read_text()
    made = hub.repos["me/tiny"].files()["README.md"].decode()
    (converted / "README.md").write_text(made.replace("# tiny", "# Tiny, my favourite"))
    assert push(converted, "me/tiny").exit_code == 0
    assert "# Tiny, my favourite" in hub.repos["me/tiny"].files()["README.md"].decode()
    assert push(converted, "me/tiny", "--card", "made").exit_code == 0
    assert hub.repos["me/tiny"].files()["README.md"].decode() == made == (converted / "README.md").read_text()


def test_a_card_that_was_edited_on_the_hub_stays(hub, push, converted):
    assert push(converted, "me/tiny").exit_code == 0
    repo = hub.repos["me/tiny"]
    repo.add("main", repo.files() | {"README.md": b"---\nlicense: mit\n---\nwritten there"})
    result = push(converted, "me/tiny")
    assert "The card on the Hub was edited and stays as it is" in result.stdout
    assert repo.files()["README.md"].endswith(b"written there")
    (converted / "README.md").write_text(EDITED)
    assert "README.md was edited both here and on the Hub" in said(push(converted, "me/tiny"))
    assert repo.files()["README.md"].endswith(b"written there")
    assert push(converted, "me/tiny", "--card", "hub").exit_code == 0
    assert repo.files()["README.md"].endswith(b"written there")
    assert push(converted, "me/tiny", "--card", "local").exit_code == 0
    assert repo.files()["README.md"].decode() == EDITED


def test_a_licence_that_is_not_known_is_asked_for(hub, push, make_checkpoint, tmp_path):
    convert(make_checkpoint(), tmp_path / "out", ConvertOptions(groups=2))
    assert "the licence of" in said(push(tmp_path / "out", "me/tiny"))
    assert "--license apache-2.0, say" in said(push(tmp_path / "out", "me/tiny", "--dry-run"))
    assert not hub.asked
    assert push(tmp_path / "out", "me/tiny", "--license", "gemma").exit_code == 0
    assert ModelCard(hub.repos["me/tiny"].files()["README.md"].decode()).data.get("license") == "gemma"
    assert push(tmp_path / "out", "me/tiny").exit_code == 0  # the card says it now
    (tmp_path / "out" / "README.md").write_text("In my own words\n")
    assert "was edited and states no licence" in said(push(tmp_path / "out", "me/tiny"))


def test_a_dry_run_shows_everything_and_does_nothing(hub, push, converted, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    before = {path.name: path.read_bytes() for path in converted.iterdir()}
    result = push(converted, "me/tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    for name in before:
        assert name in result.stdout
    assert "would go to me/tiny; nothing was sent" in result.stdout
    assert "# tiny\n\nThis is `parent` with 2 key/value heads" in result.stdout
    listed = json.loads(push(converted, "me/tiny", "--dry-run", "--json").stdout)
    sizes = {file["name"]: file["size"] for file in listed["files"]}
    assert sizes["model.safetensors"] == len(before["model.safetensors"])
    assert listed["card"] in result.stdout
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before
    assert not hub.asked


def test_the_token_is_nowhere_but_in_the_requests(hub, push, converted, token, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token for the Hub" in said(push(converted, "me/tiny"))
    assert not hub.asked
    for arguments in (["me/tiny"], ["org/tiny"], ["me/tiny", "--json"], ["me/tiny", "--tag", "v1"]):
        result = push(converted, *arguments, "--token", token)
        assert token not in result.output
    assert hub.repos["me/tiny"].tags
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert holding == []
    assert all(token.encode() not in data for data in hub.repos["me/tiny"].files().values())


def test_other_files_stay_here_unless_they_are_named(hub, push, converted):
    (converted / "notes.txt").write_text("not for everybody")
    (converted / "NOTICE [1]").write_text("for everybody")
    (converted / ".env").write_text("secret")
    result = push(converted, "me/tiny", "--include", "NOTICE [1]")
    assert "Not sent, since gqa did not write it: .env, notes.txt" in result.stdout
    assert {"NOTICE [1]"} == hub.repos["me/tiny"].files().keys() & {"NOTICE [1]", ".env", "notes.txt"}


def changed(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: shutil.rmtree(path), "no such directory"),
        (lambda path: (path / "gqa.json").unlink(), "has no gqa.json; gqa-push publishes what gqa-convert"),
        (lambda path: (path / "gqa.json").write_text("{"), "is not a provenance file"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "tokenizer.json").unlink(), "lacks tokenizer.json, which was written there"),
        (lambda path: (path / "model.safetensors").unlink(), "lacks model.safetensors, which was written there"),
        (lambda path: changed(path, "model.safetensors"), "model.safetensors is not what was written; copy it again"),
        (lambda path: changed(path, "config.json"), "config.json is not"),
        (lambda path: changed(path, "tokenizer.json"), "send it as it is now with --include tokenizer.json"),
        (lambda path: (path / "model.safetensors.index.json").write_text("{}"), None),
        (lambda path: (path / "pytorch_model.bin").write_bytes(b""), None),
    ],
)
def test_a_directory_that_is_not_what_was_written(hub, push, converted, damage, says):
    damage(converted)
    result = push(converted, "me/tiny")
    if says is None:  # transformers loads model.safetensors all the same, and what is not ours is not sent
        assert result.exit_code == 0, result.output
        assert len(hub.repos["me/tiny"].files()) == 8
    else:
        assert says in said(result)
        assert not hub.asked


def test_weights_that_would_be_loaded_in_place_of_ours(push, licensed, tmp_path):
    convert(licensed, tmp_path / "sharded", ConvertOptions(groups=2, max_shard_size="20kB"))
    shutil.copy(licensed / "model.safetensors", tmp_path / "sharded")
    assert "which transformers would load and gqa did not write" in said(push(tmp_path / "sharded", "me/tiny"))


def test_a_side_file_that_was_changed_on_purpose(hub, push, converted):
    (converted / "generation_config.json").write_text('{"do_sample": true}')
    assert "--include generation_config.json" in said(push(converted, "me/tiny"))
    assert push(converted, "me/tiny", "--include", "generation_config.json").exit_code == 0
    assert hub.repos["me/tiny"].files()["generation_config.json"] == b'{"do_sample": true}'
    assert push(converted, "me/tiny").exit_code == 0  # gqa.json knows it now
    assert "sent as gqa made them, or not at all" in said(push(converted, "me/x", "--include", "model.safetensors"))
    assert "has no file gone.txt" in said(push(converted, "me/x", "--include", "gone.txt"))


@pytest.mark.parametrize("name", ["tiny", "me/", "a/b/c", "me/a--b", "me/a..b", "https://huggingface.co/me/tiny"])
def test_a_wrong_name(hub, push, converted, name):
    assert "write it as org/name" in said(push(converted, name))
    assert not hub.asked


def test_a_record_from_before_files_were_recorded(push, converted):
    stages = read_stages(converted)
    del stages[-1]["files"]
    (converted / "gqa.json").write_text(stages_text(stages))
    assert "does not say what files were written" in said(push(converted, "me/tiny"))
    stages[-1]["files"] = {"../../outside": {"size": 1, "sha256": ""}}
    (converted / "gqa.json").write_text(stages_text(stages))
    assert "has a list of files that is damaged" in said(push(converted, "me/tiny"))


def report_of(checkpoint: Path, folder: Path, number: int = 2) -> Path:
    """A report that says of `checkpoint` what a card asks for, in a format of that number, without a picture."""
    row = {
        "fingerprint": fingerprint(checkpoint),
        "perplexity": 13.97,
        "perplexity_ratio": 1,
        "bits_per_byte": 0.75,
        "num_kv_heads": 2,
        "kv_cache": {"bytes_per_token": 256.0},
        "weight_bytes": 5_220_000,
        "dtype": "float32",
        "sample": {"tokens": 1000, "text_sha256": "0" * 64},
    }
    options = {"data": "text.jsonl", "window": 16, "stride": None}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"format": number, "options": options, "checkpoints": [row]}))
    return folder


@pytest.mark.parametrize("number", [1, 2])
def test_a_report_of_either_format_gives_figures(push, converted, tmp_path, number):
    report_of(converted, tmp_path / "report", number)
    result = push(converted, "me/tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "| **this checkpoint** | 2 | 13.97 |" in result.stdout
    assert "pareto.png" not in result.stdout


def test_a_report_of_a_later_format(push, converted, tmp_path):
    report_of(converted, tmp_path / "report", 3)
    assert "has format 3; this version reads 1 and 2" in said(push(converted, "me/tiny", "--dry-run"))


def test_the_picture_of_the_report_goes_along(hub, push, converted, tmp_path):
    report = report_of(converted, tmp_path / "report")
    picture = b"\x89PNG\r\n\x1a\n, and so on"
    (report / "pareto.png").write_bytes(picture)
    for _ in range(2):  # a second push finds the first one's picture in the directory
        result = push(converted, "me/tiny")
        assert result.exit_code == 0, result.output
        assert "Not sent" not in result.stdout
        there = hub.repos["me/tiny"].files()
        assert there["pareto.png"] == picture
        alt = "Quality against cost. this checkpoint: perplexity 13.97, 256 KV bytes a token"
        assert f"![{alt}](pareto.png)" in there["README.md"].decode()
        assert "pareto.png" not in json.loads(there["gqa.json"])["stages"][-1]["files"]
    (report / "pareto.png").write_bytes(picture + b", again")
    assert push(converted, "me/tiny").exit_code == 0
    assert hub.repos["me/tiny"].files()["pareto.png"] == picture + b", again"


def test_a_picture_that_is_none(push, converted, tmp_path):
    report = report_of(converted, tmp_path / "report")
    (report / "pareto.png").write_text("<svg/>")
    assert "pareto.png is not a PNG; make the report again" in said(push(converted, "me/tiny", "--dry-run"))
    assert not (converted / "pareto.png").exists()


def test_a_report_of_another_checkpoint(push, converted, tmp_path):
    (tmp_path / "report.json").write_text(
        json.dumps({"format": 1, "options": {"data": "x"}, "checkpoints": [{"fingerprint": "sha256:0"}]})
    )
    asked = [converted, "me/tiny", "--dry-run", "--report"]
    assert "no row has its fingerprint" in said(push(*asked, tmp_path / "report.json"))
    assert "can't be read" in said(push(*asked, tmp_path / "gone.json"))
    (tmp_path / "report.json").write_text("[]")
    assert "is not a report of gqa-eval" in said(push(*asked, tmp_path))
