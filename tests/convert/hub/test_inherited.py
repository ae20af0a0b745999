"""What a card takes over: the licence and the languages of the original's card, and data from the record."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from refusals import said

from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages, stages_text
from gqa.convert.rewrite import convert


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("license: unknown", "the licence of"),
        ("license: [a", "the metadata on top of"),
        ("- a list", "the metadata on top of"),
    ],
)
def test_a_card_without_a_usable_licence(push, licensed, tmp_path, metadata, says):
    source = shutil.copytree(licensed, tmp_path / "source")
    (source / "README.md").write_text(f"---\n{metadata}\n---\n")
    convert(source, tmp_path / "out", ConvertOptions(groups=2))
    assert says in said(push(tmp_path / "out", "me/tiny", "--dry-run"))


def test_a_card_in_another_encoding(push, licensed, tmp_path):
    source = shutil.copytree(licensed, tmp_path / "source")
    (source / "README.md").write_bytes("---\nlicense: mit\n---\n\nFrançais\n".encode("latin-1"))
    convert(source, tmp_path / "out", ConvertOptions(groups=2))
    refused = said(push(tmp_path / "out", "me/tiny", "--dry-run"))
    assert f"{tmp_path / 'out' / 'README.md'} is not UTF-8 text (byte 26); convert it to UTF-8" in refused


def test_norwegian_is_a_language(push, licensed, tmp_path):
    source = shutil.copytree(licensed, tmp_path / "source")
    convert(source, tmp_path / "out", ConvertOptions(groups=2))
    for language, kept in ("[en, no]", ["en", "no"]), ("no", "no"):
        (tmp_path / "out" / "README.md").write_text(f"---\nlicense: mit\nlanguage: {language}\n---\n")
        made = push(tmp_path / "out", "me/tiny", "--dry-run", "--card", "made", "--json").stdout
        assert ModelCard(json.loads(made)["card"]).data.to_dict()["language"] == kept


def test_data_are_linked_only_where_the_record_says_that_they_are_on_the_hub(push, converted, monkeypatch, tmp_path):
    stages = read_stages(converted)
    stages[0]["calibration"] = {"data": "data/text", "tokens": 64}
    monkeypatch.chdir(tmp_path)  # where no folder data/text is
    for record, linked in ({}, None), ({"hub_data": ["data/text"]}, ["data/text"]):
        (converted / "gqa.json").write_text(stages_text([stages[0] | record]))
        card = ModelCard(json.loads(push(converted, "me/tiny", "--dry-run", "--json").stdout)["card"])
        assert card.data.to_dict().get("datasets") == linked
        assert ("huggingface.co/datasets/data/text" in card.text) == bool(linked)


def test_a_licence_with_a_name_of_its_own_is_inherited_whole(push, licensed, tmp_path):
    source = shutil.copytree(licensed, tmp_path / "source")
    own = {"license": "other", "license_name": "their-terms", "license_link": "LICENSE"}
    (source / "README.md").write_text("---\n" + "".join(f"{key}: {value}\n" for key, value in own.items()) + "---\n")
    convert(source, tmp_path / "out", ConvertOptions(groups=2))
    for arguments, kept in ([], own), (["--license", "mit"], {"license": "mit"}):
        card = ModelCard(
            json.loads(push(tmp_path / "out", "me/tiny", "--dry-run", "--json", *arguments).stdout)["card"]
        )
        found = card.data.to_dict()
        assert {key: value for key, value in found.items() if key.startswith("license")} == kept
