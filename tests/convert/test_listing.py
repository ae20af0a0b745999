"""The list of families: whole, true to what a conversion says, and there at once."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gqa.convert.cli import app
from gqa.convert.families.refused import REFUSED
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.family import all_families
from gqa.convert.listing import listed, refusals
from gqa.convert.plan import ConvertOptions, plan_conversion


@pytest.fixture
def entry():
    """What is listed of a family."""
    return lambda model_type: next(entry for entry in listed() if entry.model_type == model_type)


def test_every_family_is_listed_once_and_every_refusal_has_its_reason():
    assert [entry.model_type for entry in listed()] == sorted(all_families().keys() | REWRITTEN)
    assert {name: reason for reason, names in refusals() for name in names} == REFUSED
    assert len(refusals()) == len(set(REFUSED.values()))


def test_every_family_says_what_users_know_it_by():
    known = [entry.known_as for entry in listed()]
    assert all(known)
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    ("model_type", "keys", "values"),
    [
        ("llama", "mapped", "mapped"),
        ("qwen3", "averaged", "mapped"),
        ("nanochat", "turned", "mapped"),
        ("llama4_text", "mapped; turned with use_qk_norm", "mapped"),
        ("olmo2", "mapped", "mapped"),
        ("olmo", "mapped; averaged with clip_qkv", "mapped; averaged with clip_qkv"),
        ("cohere", "mapped; averaged with use_qk_norm", "mapped"),
        ("bitnet", "mapped", "averaged"),
        ("gpt2", "mapped", "mapped"),
    ],
)
def test_what_is_done_with_keys_and_values(entry, model_type, keys, values):
    assert (entry(model_type).keys, entry(model_type).values) == (keys, values)


@pytest.mark.parametrize("name", ["llama", "qwen3", "afmoe", "olmo-clip", "cohere-norm"])
def test_reasons_are_those_that_a_conversion_gives(named, entry, name, tmp_path):
    named(name).model().save_pretrained(tmp_path)
    plan = plan_conversion(tmp_path, ConvertOptions(groups=2, method="lowrank"))
    assert plan.restrictions == entry(plan.family.model_type).reasons


@pytest.mark.parametrize(
    ("model_type", "output", "kv_heads"),
    [
        ("llama", ["llama"], "any"),
        ("gpt_neox", ["phi", "nemotron"], "any"),
        ("gpt2", ["gpt_bigcode"], "any"),
        ("xglm", ["gpt_bigcode"], "one"),
    ],
)
def test_what_comes_out(entry, model_type, output, kv_heads):
    assert (entry(model_type).output, entry(model_type).kv_heads) == (output, kv_heads)


def test_whose_code_loads_it(entry):
    assert [entry(name).code for name in ("llama", "gpt2", "bloom", "gqa_gpt2")] == ["stock", "stock", "own", "own"]
    assert [entry(name).more_heads for name in ("llama", "gpt2", "bloom")] == [None, "gqa_gpt2", None]
    assert entry("gpt2").row[2] == "gpt_bigcode, stock, with one KV head; gqa_gpt2, own code, with more"


def test_json_has_all_of_it():
    result = CliRunner().invoke(app, ["--list-families", "--json"])
    said = json.loads(result.stdout)
    assert said["refused"] == REFUSED
    assert [family["model_type"] for family in said["families"]] == sorted(all_families().keys() | REWRITTEN)
    assert all(set(family["output"]) <= all_families().keys() for family in said["families"])


def test_the_table_names_every_family_whatever_the_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["--list-families"])
    assert result.exit_code == 0
    words = set(result.stdout.replace(",", " ").split())
    assert all_families().keys() | REWRITTEN.keys() | REFUSED.keys() <= words


def test_the_list_waits_for_nothing_heavy():
    code = (
        "import sys\nfrom gqa.convert.cli import app\n"
        "app(['--list-families', '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
