"""A whole evaluation through Python: the numbers, the comparison with the first row, the files it leaves."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.convert.options import build_options
from gqa.eval import report
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.read import read_report
from gqa.eval.subject import name_checkpoints

BASE = {"window": 16, "dtype": "float32", "device": "cpu"}


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(data=str(data), **(BASE | given))


@pytest.fixture(scope="module")
def other(make_checkpoint) -> Path:
    return make_checkpoint("other", seed=1, num_key_value_heads=2)


def test_the_numbers_are_those_of_the_definition(checkpoint, data, texts):
    (row,) = evaluate([checkpoint], options(data)).rows
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    stream = torch.tensor([token for text in texts for token in [*tokenizer(text)["input_ids"], 0]])
    total, count = 0.0, 0
    with torch.no_grad():
        for window in stream[: len(stream) // 16 * 16].view(-1, 16):
            total += 15 * float(model(input_ids=window[None], labels=window[None]).loss)
            count += 15
        rest = len(stream) % 16
        last = model(input_ids=stream[None, -16:]).logits[0, -rest - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(last, stream[-rest:], reduction="sum"))
        count += rest
    assert row.sample.num_tokens == count
    assert row.nll.value == pytest.approx(total / count, rel=1e-6)
    assert row.perplexity == pytest.approx(math.exp(total / count), rel=1e-6)


def test_the_batch_size_changes_nothing_that_matters(checkpoint, data):
    values = [
        evaluate([checkpoint], options(data, batch_size=size, documents="separate")).rows[0].nll.value
        for size in (1, 3, 32)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_the_first_row_is_what_the_others_are_compared_with(checkpoint, other, data):
    made = evaluate([checkpoint, other], options(data))
    first, second = made.rows
    assert first.ratio is not None
    assert second.ratio is not None
    assert second.nll_above_first is not None
    assert (first.ratio.value, first.ratio.standard_error) == (1, 0)
    assert second.nll_above_first.value == pytest.approx(second.nll.value - first.nll.value)
    assert second.ratio.value == pytest.approx(second.perplexity / first.perplexity)
    assert second.result.parameters < first.result.parameters
    assert second.result.kv_cache.bytes_per_token * 2 == first.result.kv_cache.bytes_per_token == 2 * 4 * 8 * 4 * 2
    assert made.notes() == []


def test_the_errors_of_differences_are_paired(checkpoint, other, data):
    rows = evaluate([checkpoint, other], options(data)).rows
    difference = rows[1].result.nlls - rows[0].result.nlls
    window = rows[0].sample.cluster
    sums = np.bincount(window, weights=difference[rows[0].sample.scored])
    counts = np.bincount(window)
    mean = sums.sum() / counts.sum()
    expected = math.sqrt(len(sums) / (len(sums) - 1) * ((sums - mean * counts) ** 2).sum()) / counts.sum()
    assert rows[1].nll_above_first is not None
    assert rows[1].nll_above_first.standard_error == pytest.approx(expected)


def test_another_tokenizer_is_compared_by_bits_per_byte_only(checkpoint, make_checkpoint, data):
    made = evaluate([checkpoint, make_checkpoint("bos", adds_bos=True)], options(data))
    row = made.rows[1]
    assert row.ratio is None
    assert row.nll_above_first is None
    assert row.bits_per_byte is not None
    (note,) = made.notes()
    assert "bos splits the text into other tokens than tiny: compare bits per byte" in note


def test_another_size_of_the_vocabulary_is_noted(checkpoint, make_checkpoint, data):
    padded = make_checkpoint("padded", vocab_size=352)
    made = evaluate([checkpoint, padded], options(data))
    assert made.rows[1].divergence is None
    assert made.notes() == [
        "padded has a vocabulary of 352 and tiny one of 320 (padding, perhaps): there is no divergence between the two."
    ]
    assert evaluate([checkpoint, padded], options(data, divergence=False)).notes() == []


def test_another_precision_is_noted(checkpoint, make_checkpoint, data):
    half = make_checkpoint("half", dtype=torch.bfloat16)
    (note,) = evaluate([checkpoint, half], options(data, dtype="auto")).notes()
    assert note.startswith("half is in bfloat16, tiny in float32")
    assert evaluate([checkpoint, half], options(data)).notes() == []


def test_the_files_of_a_report(checkpoint, other, data, tmp_path: Path):
    output = tmp_path / "new" / "report"
    made = evaluate([f"before={checkpoint}", f"after|x={other}"], options(data), output)
    files = ["pareto.png", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in output.iterdir()) == files
    assert list(output.parent.iterdir()) == [output]
    document = json.loads((output / "report.json").read_text())
    assert document == made.to_dict()
    assert document["options"] == json.loads(json.dumps(asdict(options(data))))
    before, after = document["checkpoints"]
    assert before["label"] == "before"
    assert after["num_kv_heads"] == 2
    assert after["kv_cache"]["formula_bytes"] == after["kv_cache"]["measured_bytes"] == 16 * 2 * 2 * 8 * 4 * 2
    assert after["perplexity_ratio"] == pytest.approx(after["perplexity"] / before["perplexity"])
    assert before["sample"]["cluster"] == "window"
    assert before["weight_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    page = (output / "report.md").read_text()
    assert f"| before | 4 | {before['perplexity']:.1f} | {before['nll']:.4f} ± " in page
    assert r"| after\|x |" in page
    assert "window 16, stride 16, documents joined" in page
    assert "the formula from the config gives the same" in page
    assert before["sample"]["text_sha256"][:16] in page


def test_every_documented_key_is_there_and_every_key_documented(checkpoint, data):
    document = evaluate([checkpoint], options(data)).to_dict()
    (row,) = document["checkpoints"]
    for key in [*document, *row]:
        assert f"`{key}`" in (report.__doc__ or ""), key


def test_infinity_is_null_in_json(make_checkpoint, data):
    checkpoint = make_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    model.save_pretrained(checkpoint)
    made = evaluate([checkpoint], options(data))
    assert made.rows[0].perplexity == math.inf
    assert json.loads(made.to_json())["checkpoints"][0]["perplexity"] is None


def test_broken_weights_are_an_error(make_checkpoint, data, tmp_path: Path):
    checkpoint = make_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(checkpoint)
    with pytest.raises(UserError, match="gives no finite probability to"):
        evaluate([checkpoint], options(data), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_numbers_outlive_a_page_that_cannot_be_drawn(checkpoint, data, tmp_path: Path, monkeypatch):
    def fail(*given):
        raise RuntimeError("no pencil")

    monkeypatch.setattr("gqa.eval.written.to_html", fail)
    with pytest.raises(RuntimeError, match="no pencil") as failure:
        evaluate([checkpoint], options(data), tmp_path / "new" / "report")
    assert "What was measured is kept in" in failure.value.__notes__[0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.rescued.json"]
    assert read_report(tmp_path / "new" / "report.rescued.json").document.first.label == "tiny"


def test_an_output_is_replaced_only_when_asked(checkpoint, data, tmp_path: Path):
    output = tmp_path / "report"
    output.mkdir()
    (output / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists; choose another with --output, or replace it with --overwrite"):
        evaluate([checkpoint], options(data), output)
    evaluate([checkpoint], options(data), output, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize("inside", ["checkpoint", "data"])
def test_an_output_never_swallows_an_input(checkpoint, data, inside):
    around = {"checkpoint": checkpoint / "report", "data": data.parent}[inside]
    with pytest.raises(UserError, match=r"is the input .*, inside it, or around it"):
        evaluate([checkpoint], options(data), around, overwrite=True)


def test_progress_tells_of_every_stage(checkpoint, data):
    told = []
    evaluate([checkpoint], options(data, batch_size=4), progress=lambda *what: told.append(what))
    assert told[:3] == [("reading the data", 0, 0), ("tiny: loading", 0, 0), ("tiny: scoring", 0, told[2][2])]
    assert told[-1] == ("tiny: scoring", told[2][2], told[2][2])


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path):
    for name in ("a/model", "b/model", "a/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")

    def labels(*names):
        return [label for label, _ in name_checkpoints([str(tmp_path / name) for name in names])]

    assert labels("a/model", "a/other") == ["model", "other"]
    assert labels("a/model", "b/model") == ["a/model", "b/model"]
    model = tmp_path / "a" / "model"
    assert name_checkpoints([f"x={model}", model]) == [("x", model), ("model", model)]
    with pytest.raises(UserError) as caught:
        name_checkpoints([model, f"other={tmp_path / 'a' / 'other'}", model])
    assert str(caught.value) == f"two checkpoints are called 'model'; tell them apart as one={model} other={model}"
    assert name_checkpoints([f"{'x' * 300}={model}"]) == [("x" * 300, model)]
    with pytest.raises(UserError, match="is neither a checkpoint nor label=checkpoint"):
        name_checkpoints([f"={model}"])


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path):
    path = tmp_path / "lr=1e-4"
    path.mkdir()
    (path / "config.json").write_text("{}")
    assert name_checkpoints([str(path)]) == [("lr=1e-4", path)]


BAD_OPTIONS = {
    "window is 1; it must be at least 2": {"window": 1},
    "stride 17 is longer than the window 16": {"stride": 17},
    "stride is 0; it must be at least 1": {"stride": 0},
    "max_tokens is 0; it must be at least 1": {"max_tokens": 0},
    "batch_size is -1; it must be at least 1": {"batch_size": -1},
    "bos is 'alway' (did you mean 'always'?); choose one of auto, always, first, never": {"bos": "alway"},
    "documents is 'join' (did you mean 'joined'?)": {"documents": "join"},
    "dtype is 'fp8'; choose one of": {"dtype": "fp8"},
    "device is 'GPU 1'; write auto, cpu, cuda, cuda:1 or mps": {"device": "GPU 1"},
    "data is empty": {"data": ""},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_are_refused_at_the_door(message):
    with pytest.raises(UserError) as caught:
        EvalOptions(**({"data": "x"} | BASE | BAD_OPTIONS[message]))
    assert message in str(caught.value)


def test_options_come_out_of_a_table():
    assert build_options(EvalOptions, {"data": "x", "window": 64}, "recipe") == EvalOptions(data="x", window=64)
    with pytest.raises(UserError, match=r"recipe: unknown key 'windows' \(did you mean 'window'\?\)"):
        build_options(EvalOptions, {"data": "x", "windows": 64}, "recipe")
    with pytest.raises(UserError, match="recipe: window is 1"):
        build_options(EvalOptions, {"data": "x", "window": 1}, "recipe")


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "teapot"])
def test_a_device_that_is_not_there_is_an_error(checkpoint, data, device):
    with pytest.raises(UserError, match="no device"):
        evaluate([checkpoint], options(data, device=device))
