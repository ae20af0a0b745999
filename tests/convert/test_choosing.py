"""How many KV heads, as a number, a share or a bearable loss; and what a dry run shows before anything is spent."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from gqa.convert.cli import app
from gqa.convert.method import method_names


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "how many KV heads to keep?"),
        (["--groups", "2", "--kv-budget", "0.5"], "give one of them"),
        (["--groups", "auto", "--kv-budget", "0.5"], "give one of them"),
        (["--groups", "two"], "groups is 'two'; give a number of KV heads, or auto"),
        (["--groups", "2.5"], "groups is '2.5'"),
        (["--groups", "--5"], "groups is '--5'; give a number of KV heads, or auto"),
        (["--groups", "2", "--seed", "-1"], "seed is -1; it must be from 0 to 4294967295"),
        (["--groups", "2", "--method", "random", "--seed", str(2**60)], "it must be from 0 to 4294967295"),
        (["--groups", "2", "--method", "lowrank", "--calibration", "self", "--seed", str(2**32)], "it must be from 0"),
        (["--groups", "-2"], "groups is -2; it must be at least 1"),
        (["--groups", "3"], "do not divide"),
        (["--groups", "3", "--dry-run"], "do not divide"),
        (["--kv-budget", "0"], "between 0 and 1"),
        (["--kv-budget", "1"], "between 0 and 1"),
        (["--kv-budget", "nan", "--dry-run"], "between 0 and 1"),
        (["--kv-budget", "0.1"], "even one takes 0.125"),
        (["--groups", "auto"], "give both"),
        (["--groups", "auto", "--max-loss", "0.1"], "give both"),
        (["--groups", "auto", "--calibration", "text.txt"], "give both"),
        (["--groups", "auto", "--max-loss", "0", "--calibration", "text.txt"], "must be more than 0"),
        (["--groups", "auto", "--max-loss", "nan", "--calibration", "text.txt"], "must be more than 0"),
        (["--groups", "auto", "--max-loss", "0.1", "--calibration", "no.txt"], "the tokenizer of"),
        (["--groups", "2", "--max-loss", "0.1"], "--max-loss is for --groups auto"),
        (["--max-loss", "0.1", "--dry-run"], "--max-loss is for --groups auto"),
        (["--groups", "2", "--method", "lowrnk"], "did you mean"),
        (["--dry-run", "--method", "lowrnk"], "did you mean"),
        (["--groups", "2", "--calibration", "text.txt"], "has no use for calibration"),
        (["--groups", "2", "--fit", "64"], "a fit needs text to learn from"),
        (["--groups", "2", "--calibration", "text.txt", "--fit", "0"], "tokens is 0; it must be at least 1"),
        (["--groups", "2", "--calibration-tokens", "64"], "--calibration-tokens is about the text of --calibration"),
        (["--groups", "2", "--device", "cpu"], "--device is about the text of --calibration DATA"),
        (["--groups", "2", "--fit-steps", "9"], "--fit-steps is about --fit TOKENS, which is not given"),
        (["--calibration", "text.txt", "--fit", "64", "--calibration-tokens", "64"], "leave --calibration-tokens out"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_in_a_sentence(checkpoint, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = run(checkpoint, *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt"}


def test_a_budget_is_kept(checkpoint, tmp_path):
    result = run(checkpoint, "--kv-budget", "0.3")
    assert result.exit_code == 0, result.output
    assert "A KV cache of at most 0.3 of the original's: 2 of 8 KV heads." in result.stdout
    stages = json.loads((tmp_path / "ckpt-gqa2" / "gqa.json").read_text())["stages"]
    assert stages[-1]["kv_budget"] == 0.3
    assert stages[-1]["kv_heads_after"] == [2, 2]


def test_one_head_can_not_become_fewer(llama, tmp_path):
    llama.model(1).save_pretrained(tmp_path)
    for wish in (["--dry-run"], ["--kv-budget", "0.5"]):
        result = run(tmp_path, *wish)
        assert result.exit_code == 2
        assert "it can't be reduced further" in result.stderr


def table_rows(output):
    """The cells of every line of a table that starts with a word of interest."""
    lines = [
        line.replace("┃", "│").strip("│ ").split("│") for line in output.splitlines() if "│" in line or "┃" in line
    ]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_a_dry_run_without_groups_shows_all_methods_and_numbers(checkpoint, tmp_path):
    result = run(checkpoint, "--dry-run")
    assert result.exit_code == 0, result.output
    rows = table_rows(result.stdout)
    assert rows["method"][2:] == ["4", "2", "1"]
    assert set(method_names()) < set(rows)
    report = json.loads(run(checkpoint, "--dry-run", "--json").stdout)
    shown = {(method, groups): rows[method][2 + i] for method in method_names() for i, groups in enumerate([4, 2, 1])}
    said = {(entry["method"], entry["groups"]): f"{entry['total']:.2f}" for entry in report["forecast"]["predictions"]}
    assert shown == said
    assert "8 -> " not in result.stdout
    assert "all 2 layers" in result.stdout
    assert report["output"] is None
    assert report["recommended"]["command"] in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt"}


def test_the_recommended_command_works(checkpoint, tmp_path):
    report = json.loads(
        run(checkpoint, "--dry-run", "--grouping", "contiguous", "--dtype", "bfloat16", "--json").stdout
    )
    recommended = report["recommended"]
    command, *arguments = shlex.split(recommended["command"])
    assert command == "gqa-convert"
    assert arguments[-4:] == ["--grouping", "contiguous", "--dtype", "bfloat16"]
    assert run(*arguments).exit_code == 0
    (stage,) = json.loads((tmp_path / f"ckpt-gqa{recommended['groups']}" / "gqa.json").read_text())["stages"]
    assert (stage["method"], stage["grouping"], stage["dtype"]) == ("lowrank", "contiguous", "bfloat16")


def test_a_dry_run_for_one_number_compares_the_method_asked_for(checkpoint):
    result = run(checkpoint, "--dry-run", "--groups", "2")
    assert "8 -> 2" in result.stdout
    rows = table_rows(result.stdout)
    assert f"Recommended: lowrank with 2 KV heads, predicted damage {rows['lowrank'][3]} (mean: {rows['mean'][3]})" in (
        result.stdout
    )


def test_verbose_shows_every_layer(checkpoint):
    plain, verbose = (run(checkpoint, "--dry-run", "-g", "2", *more).stdout for more in ([], ["--verbose"]))
    report = json.loads(run(checkpoint, "--dry-run", "-g", "2", "--json").stdout)
    for entry in report["forecast"]["predictions"]:
        if entry["groups"] == 2 and entry["method"] in ("mean", "lowrank"):
            for layer in entry["layers"]:
                cell = f"{sum(layer['keys']):.3f} + {sum(layer['values']):.3f}"
                assert cell in verbose
                assert cell not in plain


def test_a_budget_says_what_a_number_for_every_layer_would_gain(llama, tmp_path):
    model = llama.model(num_hidden_layers=3).float()
    for layer in model.model.layers[:2]:  # two layers that need one head
        for module in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads = module.weight.data.unflatten(0, (8, -1))
            heads.copy_(heads[:1].expand_as(heads).clone())
    model.save_pretrained(tmp_path)
    result = run(tmp_path, "--dry-run", "--kv-budget", "0.25")
    assert result.exit_code == 0, result.output
    assert "1 in layer 0, 1 in layer 1, 4 in layer 2; 2 elsewhere" in result.stdout
    gain = json.loads(run(tmp_path, "--dry-run", "--kv-budget", "0.25", "--json").stdout)["per_layer"]
    assert gain["counts"] == [1, 1, 4]
    assert 0 < gain["damage"] < gain["uniform_damage"]


def test_calibration_is_measured_on_in_a_dry_run(make_checkpoint, tmp_path, texts):
    checkpoint = make_checkpoint("text")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 300))
    arguments = ("--calibration", tmp_path / "text.jsonl", "--calibration-tokens", 256, "--sequence-length", 32)
    result = run(checkpoint, "--dry-run", *arguments, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "measured on the calibration text" in result.stdout
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("  gqa-convert "))
    assert command.endswith(
        f"--method lowrank --calibration {tmp_path / 'text.jsonl'} "
        "--calibration-tokens 256 --sequence-length 32 --device cpu"
    )
    fitted = run(checkpoint, "--dry-run", *arguments[:2], "--fit", 128, "--sequence-length", 32, "--fit-steps", 3)
    assert f"--calibration {tmp_path / 'text.jsonl'} --fit 128 --sequence-length 32 --fit-steps 3\n" in fitted.stdout
    rows, assumed = table_rows(result.stdout), table_rows(run(checkpoint, "--dry-run").stdout)
    assert rows["lowrank"] != assumed["lowrank"]


def test_what_a_family_forbids_is_said(named, tmp_path):
    named("olmo-clip").model().save_pretrained(tmp_path)
    result = run(tmp_path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "Restricted: clip_qkv clamps keys and values" in result.stdout


def test_a_conversion_that_loses_much_ends_with_a_better_one(llama, tmp_path):
    model = llama.model().float()
    for layer in model.model.layers:
        heads = layer.self_attn.v_proj.weight.data.unflatten(0, (8, -1))
        heads[1::2] = -heads[::2]
    model.save_pretrained(tmp_path / "ckpt")
    result = run(tmp_path / "ckpt", "-g", "4")
    *_, sentence, command = result.stdout.splitlines()
    assert sentence == "Of what a token adds to the output, mean keeps 0%, lowrank would keep 100% (a sample):"
    better = f"gqa-convert {tmp_path / 'ckpt'} --groups 4 --method lowrank"
    assert command.strip() == f"{better} -o {tmp_path / 'ckpt-gqa4-lowrank'}"
    followed = run(*shlex.split(command)[1:])
    assert followed.exit_code == 0, followed.output
    assert "would keep" not in followed.stdout
    result = run(tmp_path / "ckpt", "-g", "4", "--grouping", "similar", "--dtype", "float16", "--overwrite")
    better = better.replace("lowrank", "lowrank --grouping similar --dtype float16")
    assert result.stdout.splitlines()[-1].strip().startswith(better)


def test_a_short_text_is_enough_where_nothing_is_checked_on_it(make_checkpoint, texts, tmp_path):
    """Of which a fit holds out more than there is here."""
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 20))
    arguments = (make_checkpoint("text"), "-g", 2, "--method", "lowrank", "--calibration", tmp_path / "text.jsonl")
    result = run(*arguments, "--calibration-tokens", 256, "--sequence-length", 32)
    assert result.exit_code == 0, result.output
    result = run(*arguments, "--fit", 256, "--sequence-length", 32, "--overwrite")
    assert result.exit_code == 2
    assert "and 512 held out from other documents; name more text" in result.stderr
