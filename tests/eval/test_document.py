"""report.json by its schema: the file that ships is that of the types, and what gqa-eval writes is all described."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from whole_report import with_all_blocks

from gqa.eval.document import Document
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.schema import schema_text


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(resources.files("gqa.eval").joinpath("report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(checkpoint: Path, make_checkpoint: Callable[..., Path], data: Path) -> dict[str, Any]:
    other = make_checkpoint("other", seed=1, num_key_value_heads=2)
    options = EvalOptions(data=str(data), window=16, dtype="float32", device="cpu")
    return evaluate([checkpoint, other], options).to_dict()


def closed(schema: Any) -> Any:
    """The same, but that objects may hold nothing that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return inner | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else inner


def complaints(schema: dict[str, Any], report: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(report)]


def test_the_file_that_ships_is_that_of_the_types(schema):
    Draft202012Validator.check_schema(schema)
    assert json.loads(schema_text()) == schema, "write it anew: python -m gqa.eval.schema > eval/report.schema.json"


def test_what_gqa_eval_writes_is_valid_and_every_key_described(schema, report):
    assert complaints(closed(schema), report) == []
    assert complaints(closed(schema), with_all_blocks(report)) == []


def test_an_encoder_decoder_too(schema, make_encoder_decoder, data):
    options = EvalOptions(data=str(data), window=64, dtype="float32", device="cpu")
    assert complaints(closed(schema), evaluate([make_encoder_decoder()], options).to_dict()) == []


def test_nothing_is_lost_in_reading(report):
    whole = json.loads(json.dumps(with_all_blocks(report)))
    assert Document.model_validate(whole).model_dump(mode="json", exclude_unset=True) == whole


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda report: report.update(format=3), "$.format"),
        (lambda report: report["checkpoints"][0].update(nll=None), "$.checkpoints[0].nll"),
        (lambda report: report["checkpoints"][1]["sample"].pop("tokens"), "$.checkpoints[1].sample"),
    ],
)
def test_what_is_wrong_is_found(schema, report, change, place):
    wrong = json.loads(json.dumps(report))
    change(wrong)
    assert [each.partition(": ")[0] for each in complaints(schema, wrong)] == [place]
