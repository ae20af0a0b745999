"""Conversion into classes of our own, on disk: what comes out, who can load it, and what the command says."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from gqa.convert.calibration import CalibrationOptions
from gqa.convert.checkpoint import open_checkpoint
from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.families.rewritten import REWRITTEN
from gqa.convert.family import all_families
from gqa.convert.layerfit import FitOptions
from gqa.convert.modeling import OWN, register, single_file
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert
from gqa.convert.staged import StagedModel

IDS = torch.randint(3, 96, (3, 14), generator=torch.Generator().manual_seed(7))

REMOTE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gqa":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
again = sys.argv[1] + "-again"
model.save_pretrained(again)
AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
assert not any(name.partition(".")[0] == "gqa" for name in sys.modules)
"""


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


@pytest.fixture
def saved(own_named, randomised, tmp_path):
    """A stock checkpoint on disk, of the named shape."""

    def save(name: str, dtype: torch.dtype = torch.float64, **settings) -> Path:
        own_named(name).stock(randomised, **settings).to(dtype).save_pretrained(tmp_path / "ckpt")
        return tmp_path / "ckpt"

    return save


@pytest.mark.parametrize("method", ["mean", "lowrank"])
def test_tied_heads_merge_without_loss(own, method, randomised, tie_stock, load, tmp_path):
    stock = tie_stock(own, own.stock(randomised))
    stock.save_pretrained(tmp_path / "tied")
    plan = convert(tmp_path / "tied", tmp_path / "out", ConvertOptions(groups=own.groups, method=method))
    merged = load(tmp_path / "out")
    assert plan.own_code
    assert merged.config.model_type == f"gqa_{own.model_type}"
    tolerance = own.tolerance if method == "mean" else 1e-5
    torch.testing.assert_close(logits(merged), logits(stock), rtol=0, atol=tolerance)
    with torch.no_grad():
        cache = merged(input_ids=IDS, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 2 * own.groups * (48 // own.heads) * len(plan.layers) * IDS.numel() * 8
    assert held == sum(layer.cache_bytes_after for layer in plan.layers) * IDS.numel()


def test_one_layer_at_a_time_is_the_model_to_the_last_bit(own, on_disk, both):
    staged = StagedModel(on_disk / "stock", dtype=torch.float64, device=torch.device("cpu"), own_code=True)
    both[1].config.attention_backend = staged._model.config.attention_backend
    with torch.no_grad():
        hidden = staged.embed(IDS)
        for index in range(staged.num_layers):
            with staged.layer(index) as run:
                hidden = run(hidden)
        torch.testing.assert_close(staged.head(hidden), logits(both[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "gpt_neo", "bloom", "mpt-six"])
def test_it_loads_where_gqa_is_not_installed(name, saved, load, tmp_path):
    convert(saved(name), tmp_path / "out", ConvertOptions(groups=2))
    torch.save(IDS, tmp_path / "ids")
    run_elsewhere(tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits"), logits(load(tmp_path / "out")))


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_what_is_saved_of_a_registered_class_brings_its_code(name, saved, load, tmp_path):
    """From `register` to a process that has no gqa, by nothing but transformers' own `save_pretrained`."""
    convert(saved(name), tmp_path / "converted", ConvertOptions(groups=2))
    model = load(tmp_path / "converted")
    assert type(model).__module__.startswith("gqa.")
    model.config.auto_map = {"AutoModelForCausalLM": "me/repo--modeling.Other"}  # as where it came from the Hub
    model.save_pretrained(tmp_path / "out")
    file = f"modeling_gqa_{name}.py"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "converted" / file).read_bytes()
    said, before = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("out", "converted"))
    assert {said[key] == before[key] for key in ("auto_map", "architectures", "model_type")} == {True}
    torch.save(IDS, tmp_path / "ids")
    run_elsewhere(tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits"), logits(model), rtol=0, atol=1e-12)


def run_elsewhere(folder: Path) -> None:
    """Load `out` and write its logits in a process that has no gqa."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", REMOTE, "out", "ids", "logits"]
    place = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | place, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model_type", OWN)
def test_what_is_saved_of_any_of_them_names_its_code(model_type, tmp_path):
    register(model_type)
    register(model_type)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == single_file.settings(model_type)["auto_map"]
    assert (tmp_path / single_file.file_name(model_type)).read_text() == single_file.source(model_type)
    with pytest.raises(AssertionError, match="should be a directory"):
        AutoConfig.for_model(model_type).save_pretrained(tmp_path / "config.json")


@pytest.mark.parametrize("model_type", OWN)
def test_the_file_that_goes_along_stands_alone(model_type):
    text = single_file.source(model_type)
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text == single_file.source(model_type)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(node in tree.body for node in imported)
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imported if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {"torch", "transformers", *sys.stdlib_module_names}
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {kind.rpartition(".")[2] for kind in single_file.settings(model_type)["auto_map"].values()} <= defined  # pyright: ignore[reportAttributeAccessIssue]


def test_what_stands_in_the_output(saved, tmp_path):
    convert(saved("gpt2", torch.float32), tmp_path / "out", ConvertOptions(groups=2))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GQAGPT2ForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_gqa_gpt2.GQAGPT2ForCausalLM"
    assert (config["model_type"], config["num_key_value_heads"]) == ("gqa_gpt2", 2)
    assert (tmp_path / "out" / "modeling_gqa_gpt2.py").read_text() == single_file.source("gqa_gpt2")
    (stage,) = read_stages(tmp_path / "out")
    assert (stage["rewritten_from"], stage["own_code"]) == ("gpt2", "modeling_gqa_gpt2.py")


def test_a_checkpoint_of_ours_converts_further_and_never_runs_its_file(saved, load, tmp_path):
    convert(saved("bloom"), tmp_path / "two", ConvertOptions(groups=2))
    (tmp_path / "two" / "modeling_gqa_bloom.py").write_text("raise SystemExit('this was run')\n")
    plan = convert(tmp_path / "two", tmp_path / "one", ConvertOptions(groups=1, method="lowrank"))
    assert plan.rewriting is None
    assert (tmp_path / "one" / "modeling_gqa_bloom.py").read_text() == single_file.source("gqa_bloom")
    assert load(tmp_path / "one").config.num_key_value_heads == 1
    assert [stage["kv_heads_after"] for stage in read_stages(tmp_path / "one")] == [[2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("name", "groups", "keep", "becomes"),
    [
        ("gpt2", 1, False, "gpt_bigcode"),
        ("gpt2", 1, True, "gqa_gpt2"),
        ("gpt2", 2, False, "gqa_gpt2"),
        ("gpt2", 4, False, "gpt_bigcode"),
        ("gpt2", 4, True, "gqa_gpt2"),
        ("opt", 1, False, "gpt_bigcode"),
        ("opt", 2, True, "gqa_opt"),
        ("opt-350m", 1, False, "gqa_opt"),
        ("gpt_neo", 1, False, "gqa_gpt_neo"),  # its texts are longer than its window
        ("bloom", 1, False, "gqa_bloom"),
        ("mpt", 4, True, "gqa_mpt"),
    ],
)
def test_which_class_the_output_is_of(name, groups, keep, becomes, saved):
    plan = plan_conversion(saved(name), ConvertOptions(groups=groups, keep_architecture=keep))
    assert plan.family.model_type == becomes
    assert plan.group_choices == [1, 2]
    assert plan.rewriting is not None
    assert f"the output is a {becomes} checkpoint" in plan.rewriting
    assert ("modeling_" in plan.rewriting) == plan.own_code == becomes.startswith("gqa_")


def test_other_families_keep_what_they_are_or_need_no_code_of_ours(saved, make_checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"^llama keeps its architecture anyway; leave --keep-architecture out$"):
        plan_conversion(make_checkpoint(), ConvertOptions(groups=2, keep_architecture=True))
    neox = make_checkpoint(model_type="gpt_neox")
    with pytest.raises(UserError, match="no code of our own for gpt_neox: as a phi or nemotron it computes the same"):
        plan_conversion(neox, ConvertOptions(groups=2, keep_architecture=True))


def test_numbers_that_do_not_divide(saved):
    with pytest.raises(UserError, match="4 KV heads do not divide into 3 groups; choose one of 1, 2, 4"):
        plan_conversion(saved("gpt2"), ConvertOptions(groups=3))


def test_the_command_says_which_class_before_it_writes(saved):
    checkpoint = saved("gpt2", torch.float32)
    result = CliRunner().invoke(app, ["-g", "2", str(checkpoint)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("gpt2 has no KV heads in transformers; the output is a gqa_gpt2 checkpoint")
    assert "modeling_gqa_gpt2.py" in result.stdout.splitlines()[0]
    result = CliRunner().invoke(app, ["-g", "1", "--keep-architecture", str(checkpoint), "--json"])
    assert (said := json.loads(result.stdout))["own_code"] is True
    assert said["model_type"] == "gqa_gpt2"


@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_a_dry_run_offers_every_number(name, saved):
    result = CliRunner().invoke(app, [str(saved(name, torch.float32)), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    predictions = json.loads(result.stdout)["forecast"]["predictions"]
    assert {prediction["groups"] for prediction in predictions} == {1, 2}
    assert min(prediction["total"] for prediction in predictions) > 0


@pytest.mark.parametrize("name", ["bloom", "opt-350m", "mpt", "gpt_neo"])
def test_calibration_and_fit(name, saved, tmp_path, calibration_text, make_tokenizer, load):
    checkpoint = saved(name, torch.float32, vocab_size=320)
    make_tokenizer().save_pretrained(checkpoint)
    calibration = CalibrationOptions(data=str(calibration_text), tokens=512, held_out_tokens=256, sequence_length=32)
    options = ConvertOptions(groups=2, method="lowrank", calibration=calibration, fit=FitOptions(steps=40))
    convert(checkpoint, tmp_path / "out", options)
    fits = [layer["fit"] for layer in read_stages(tmp_path / "out")[-1]["layers"]]
    assert all(fit["held_out_after"] <= fit["held_out_before"] < 2 for fit in fits)
    assert any(fit["steps"] for fit in fits)
    assert logits(load(tmp_path / "out")).isfinite().all()


def test_the_fewest_heads_are_found_across_classes(
    own_named, randomised, tie_stock, calibration_text, make_tokenizer, tmp_path
):
    """One KV head is of one class and two, which lose nothing here, of another; both are measured."""
    checkpoint = tmp_path / "ckpt"
    variant = own_named("gpt2")
    model = randomised(variant.stock(randomised, vocab_size=320), 5)  # one whose merged heads do worse, not better
    tie_stock(variant, model).float().save_pretrained(checkpoint)
    make_tokenizer().save_pretrained(checkpoint)
    words = ["--groups", "auto", "--max-loss", "1e-3", "--method", "mean", "--sequence-length", "32", "--json"]
    words += ["--calibration", str(calibration_text), "--calibration-tokens", "512"]
    result = CliRunner().invoke(app, [*words, str(checkpoint)])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    losses = {loss["groups"]: loss["loss"] for loss in said["auto"]["losses"]}
    assert losses.keys() == {1, 2}
    assert abs(losses[2]) < 1e-5 < 1e-3 < losses[1]
    assert (said["groups"], said["model_type"]) == (2, "gqa_gpt2")


def test_long_texts_of_gpt_neo_look_back_a_window(saved, load, tmp_path):
    checkpoint = saved("gpt_neo")
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4, keep_architecture=True))
    ids = torch.randint(3, 96, (1, 64), generator=torch.Generator().manual_seed(1))
    stock, ours = load(checkpoint), load(tmp_path / "out")
    torch.testing.assert_close(logits(ours, ids), logits(stock, ids), rtol=0, atol=1e-4)
    for layer in ours.transformer.h:
        layer.attn.window = None
    assert (logits(ours, ids) - logits(stock, ids)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attn_config": {"qk_ln": True}}, "mpt with qk_ln True can't be converted"),
        ({"attn_config": {"prefix_lm": True}}, "mpt with prefix_lm True"),
        ({"attn_config": {"alibi": False}}, "mpt with alibi False"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "mpt with attn_type multiquery_attention"),
        ({"no_bias": False}, "mpt with biases"),
    ],
)
def test_mpts_that_the_stock_class_does_not_compute(settings, says, saved):
    with pytest.raises(UserError, match=says):
        open_checkpoint(saved("mpt", **settings))


def test_the_code_that_old_mpts_bring_is_left_alone(saved, load, tmp_path):
    checkpoint = saved("mpt")
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    assert isinstance(load(tmp_path / "out"), PreTrainedModel)


def test_old_names_of_bloom(saved, load, tmp_path):
    """Without the prefix of the model with a head, the width called n_embed."""
    checkpoint = saved("bloom")
    expected = logits(load(checkpoint))
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.transformer.save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["n_embed"] = config.pop("hidden_size")
    (checkpoint / "config.json").write_text(json.dumps(config))
    convert(checkpoint, tmp_path / "out", ConvertOptions(groups=4))
    torch.testing.assert_close(logits(load(tmp_path / "out")), expected, rtol=0, atol=2e-5)


def test_every_class_of_ours_is_a_family_that_something_becomes():
    ours = {name for name, family in all_families().items() if family.own_code}
    assert ours == set(OWN) == {entry.own for entry in REWRITTEN.values() if entry.own}
