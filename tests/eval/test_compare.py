"""`gqa-eval compare`: merged reports say what one run on all checkpoints would have said, or why they can't."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from whole_report import with_all_blocks

from gqa.eval.compare import compare
from gqa.eval.compare_cli import app
from gqa.eval.document import Document
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.read import read_report


def gqa_compare(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def three(checkpoint: Path, make_checkpoint: Callable[..., Path]) -> dict[str, Path]:
    return {
        "before": checkpoint,
        "two": make_checkpoint("two", seed=1, num_key_value_heads=2),
        "one": make_checkpoint("one", seed=2, num_key_value_heads=1),
    }


@pytest.fixture(scope="module")
def report_of(three: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a real report on checkpoints, by name."""
    folder = tmp_path_factory.mktemp("reports")

    def made(*names: str) -> Path:
        output = folder / "-".join(names)
        if not output.exists():
            options = EvalOptions(data=str(data), window=16, dtype="float32", device="cpu")
            evaluate([f"{name}={three[name]}" for name in names], options, output)
        return output

    return made


@pytest.fixture
def changed(report_of: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A real report with some of it changed, as a file."""

    def change(*names: str, change: Callable[[dict[str, Any]], object]) -> Path:
        report = json.loads((report_of(*names) / "report.json").read_text())
        change(report)
        path = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(report))
        return path

    return change


def merged(*paths: Path) -> dict[str, Any]:
    return compare([read_report(path) for path in paths])


def test_two_reports_with_the_same_first_make_the_report_of_one_run(report_of):
    apart = merged(report_of("before", "two"), report_of("before", "one"))
    together = json.loads((report_of("before", "two", "one") / "report.json").read_text())
    for report in (apart, together):
        for row in report["checkpoints"]:
            del row["scoring_seconds"]
    assert apart["checkpoints"] == together["checkpoints"]
    assert apart["notes"] == together["notes"] == []
    assert apart["options"] == together["options"]
    assert [source["labels"] for source in apart["merged_from"]] == [["before", "two"], ["before", "one"]]


def test_a_report_with_another_first_is_compared_by_its_means(report_of):
    apart = merged(report_of("before", "two"), report_of("one"))
    together = json.loads((report_of("before", "two", "one") / "report.json").read_text())
    mine, theirs = apart["checkpoints"][2], together["checkpoints"][2]
    assert mine["perplexity"] == theirs["perplexity"]
    for key in ("perplexity_ratio", "nll_above_first"):
        assert mine[key] == pytest.approx(theirs[key], rel=1e-9)
    assert theirs["nll_above_first_standard_error"] > 0
    assert mine["nll_above_first_standard_error"] is None
    assert mine["divergence"] is None
    assert not mine["layers"]
    (note,) = apart["notes"]
    assert note.startswith("one was not measured in one run with before: its ratio has no standard error")


def test_a_comparison_with_another_first_is_left_out_whole(report_of):
    first, one, two = merged(report_of("before"), report_of("one", "two"))["checkpoints"]
    assert one["perplexity_ratio_interval"] is two["perplexity_ratio_interval"] is None
    for row in (one, two):
        for place in row["contexts"]:
            assert place["nll_above_first"] is place["nll_above_first_standard_error"] is None
        assert {place["nll_above_first"] for place in row["positions"]} == {None}
    assert (first["label"], first["perplexity_ratio"]) == ("before", 1)


def test_the_first_is_never_held_against_itself(report_of, three, data, tmp_path: Path):
    (first, *_) = merged(report_of("before", "two"), report_of("one", "before"))["checkpoints"]
    assert (first["label"], first["perplexity_ratio_interval"], first["divergence"]) == ("before", None, None)
    options = EvalOptions(data=str(data), window=16, dtype="float32", device="cpu")
    evaluate([f"before={three['before']}", f"again={three['before']}"], options, tmp_path / "twice")
    (first, *_) = merged(tmp_path / "twice", report_of("before", "two"))["checkpoints"]
    assert (first["label"], first["perplexity_ratio_interval"], first["divergence"]) == ("before", None, None)


def test_one_fingerprint_with_two_losses_is_two_rows(changed, report_of):
    other = changed("before", "two", change=lambda report: report["checkpoints"][1].update(nll=7.0))
    made = merged(report_of("before", "two"), other)
    made_nll = made["checkpoints"][1]["nll"]
    assert [(row["label"], row["nll"] == 7) for row in made["checkpoints"]] == [
        ("before", False),
        ("two", False),
        ("two (2)", True),
    ]
    assert "two (2) has the fingerprint of two, and another NLL: both are kept." in made["notes"]
    near = changed("before", "two", change=lambda report: report["checkpoints"][1].update(nll=made_nll * 1.0001))
    assert [row["label"] for row in merged(report_of("before", "two"), near)["checkpoints"]] == ["before", "two"]


def test_what_was_asked_for_otherwise_is_noted(changed):
    def asked(new_tokens: int, limit: int | None) -> Callable[[dict[str, Any]], None]:
        def change(report: dict[str, Any]) -> None:
            report.update(with_all_blocks(report))
            report["options"].update(new_tokens=new_tokens, task_limit=limit)

        return change

    one, other = changed("before", "two", change=asked(3, 10)), changed("before", "one", change=asked(40, None))
    assert merged(one, other)["notes"] == [
        f"The tasks in {other} were measured with task_limit all, in {one} with 10: they differ for that alone.",
        f"The continuations in {other} were measured with new_tokens 40, in {one} with 3: they differ for that alone.",
    ]
    assert merged(one, changed("before", "one", change=asked(3, 10)))["notes"] == []


def test_the_order_of_reports_decides_who_is_first(report_of):
    rows = merged(report_of("one"), report_of("before", "two"))["checkpoints"]
    assert [row["label"] for row in rows] == ["one", "before", "two"]
    assert [row["perplexity_ratio"] for row in rows] == pytest.approx(
        [row["perplexity"] / rows[0]["perplexity"] for row in rows]
    )


def test_what_only_the_second_report_measured_is_taken_from_it(report_of, changed):
    whole = changed("before", "two", change=lambda report: report.update(with_all_blocks(report)))
    few = report_of("before", "two")
    made = Document.model_validate(merged(few, whole))
    full = read_report(whole).document
    assert [row.speed for row in made.checkpoints] == [row.speed or None for row in full.checkpoints]
    assert [row.continuations for row in made.checkpoints] == [row.continuations for row in full.checkpoints]
    assert made.speed == full.speed


def test_two_checkpoints_of_one_name_are_told_apart(changed, report_of):
    renamed = changed("before", "one", change=lambda report: report["checkpoints"][1].update(label="two"))
    made = merged(report_of("before", "two"), renamed)
    assert [row["label"] for row in made["checkpoints"]] == ["before", "two", "two (2)"]
    assert made["notes"] == [f"two (2) is what {renamed} calls two."]


def test_other_tokens_are_compared_by_bits_per_byte(changed, report_of):
    other = changed("one", change=lambda report: report["checkpoints"][0]["sample"].update(tokens=7))
    made = merged(report_of("before"), other)
    assert made["checkpoints"][1]["perplexity_ratio"] is None
    assert "compare bits per byte" in made["notes"][0]


def test_times_of_two_machines_are_not_compared(changed):
    def timed(report: dict[str, Any]) -> None:
        report.update(with_all_blocks(report))

    def elsewhere(report: dict[str, Any]) -> None:
        timed(report)
        report["machine"]["cpu"] = "another"
        report["speed"]["dtype"] = "bfloat16"

    made = merged(changed("before", "two", change=timed), changed("before", "one", change=elsewhere))
    assert "was measured on another machine" in made["notes"][0]
    assert "with another dtype, attention or compilation" in made["notes"][1]
    here = merged(changed("before", "two", change=timed), changed("before", "one", change=timed))
    assert here["notes"] == []


def test_another_precision_is_noted_and_bytes_are_compared_in_what_they_are_counted_in(changed, report_of):
    def half(report: dict[str, Any], counted: str) -> None:
        report["checkpoints"][0]["dtype"] = "bfloat16"
        report["checkpoints"][0]["kv_cache"]["dtype"] = counted

    computed = merged(report_of("before"), changed("one", change=lambda report: half(report, "float32")))
    assert computed["notes"][1:] == ["one was computed in bfloat16, before in float32."]
    counted = merged(report_of("before"), changed("one", change=lambda report: half(report, "bfloat16")))
    assert counted["notes"][1] == "one is in bfloat16, before in float32: KV bytes differ for that alone."


def test_a_merged_report_can_be_merged_again(report_of, tmp_path: Path):
    first = gqa_compare(report_of("before", "two"), report_of("one"), "-o", tmp_path / "first")
    assert (first.exit_code, first.stderr) == (0, "")
    again = merged(tmp_path / "first", report_of("before", "one"))
    assert [row["label"] for row in again["checkpoints"]] == ["before", "two", "one"]


def test_one_report_alone_is_drawn_anew(report_of, tmp_path: Path):
    old = report_of("before", "two")
    result = gqa_compare(old, "-o", tmp_path / "new")
    assert (result.exit_code, result.stderr) == (0, "")
    for name in ("report.html", "report.md", "pareto.png"):
        assert (tmp_path / "new" / name).read_bytes() == (old / name).read_bytes(), name
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == json.loads((old / "report.json").read_text())


def test_the_files_and_the_table(report_of, tmp_path: Path):
    result = gqa_compare(report_of("before", "two"), report_of("before", "one") / "report.json", "-o", tmp_path / "all")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"Report: {tmp_path / 'all' / 'report.html'}" in result.stdout
    assert all(f" {name} " in result.stdout for name in ("before", "two", "one"))
    files = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert files == ["pareto.png", "report.html", "report.json", "report.md"]
    assert "Merged by" in (tmp_path / "all" / "report.md").read_text()
    printed = gqa_compare(report_of("before", "two"), report_of("before", "one"), "--json")
    made, written = json.loads(printed.stdout), json.loads((tmp_path / "all" / "report.json").read_text())
    assert made["checkpoints"] == written["checkpoints"]


def test_no_label_speaks_to_the_terminal(changed, report_of):
    loud = changed("before", "one", change=lambda report: report["checkpoints"][1].update(label="\x1b[2Jone\x07\ud800"))
    result = gqa_compare(report_of("before", "two"), loud)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\ufffd[2Jone\ufffd\ufffd" in result.stdout
    assert "\x1b" not in result.stdout


def test_no_label_is_a_tag_in_markdown(changed, tmp_path: Path):
    def named(report: dict[str, Any]) -> None:
        report["checkpoints"][0]["label"] = report["checkpoints"][1]["divergence"]["against"] = (
            "<script>alert()</script>"
        )

    assert gqa_compare(changed("before", "two", change=named), "-o", tmp_path / "page").exit_code == 0
    page = (tmp_path / "page" / "report.md").read_text()
    assert "## Divergence from “&lt;script>alert()&lt;/script>”" in page
    assert "<script>" not in page


def test_reports_of_format_1_are_read(changed, report_of):
    def older(report: dict[str, Any]) -> None:
        report["format"] = 1
        for key in ("method", "speed"):
            del report[key]
        for row in report["checkpoints"]:
            for key in ("history", "contexts", "positions", "divergence", "recall", "tasks", "continuations", "layers",
                        "speed", "perplexity_ratio_interval"):  # fmt: skip
                row.pop(key, None)

    made = merged(changed("before", "two", change=older), report_of("before", "one"))
    assert made["format"] == 2
    assert [row["label"] for row in made["checkpoints"]] == ["before", "two", "one"]


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other data": (lambda report: report["checkpoints"][0]["sample"].update(text_sha256="0" * 64), "is of other data"),
    "other window": (lambda report: report["options"].update(window=8), "was measured with window 8"),
    "other stride": (lambda report: report["options"].update(stride=8), "with stride 8"),
    "other bos": (lambda report: report["options"].update(bos="always"), "with bos always"),
    "later format": (lambda report: report.update(format=3), "has format 3; this version reads 1 and 2: upgrade gqa"),
    "no checkpoints": (lambda report: report.update(checkpoints=[]), "is a damaged report: checkpoints: "),
    "a word for a number": (
        lambda report: report["checkpoints"][0].update(nll="much"),
        "is a damaged report: checkpoints.0.nll: ",
    ),
    "no row": (lambda report: report["checkpoints"].append(None), "is a damaged report: checkpoints.1: "),
    "another object": (lambda report: report.clear(), "is not a report of gqa-eval"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_report_is_one_sentence(case: str, report_of, changed, tmp_path: Path):
    change, message = BAD[case]
    refused(tmp_path, message, report_of("before", "two"), changed("before", change=change))


def test_bad_words_are_one_sentence(report_of, tmp_path: Path):
    good = report_of("before", "two")
    refused(tmp_path, f"no such file: {tmp_path / 'gone'}", good, tmp_path / "gone")
    (tmp_path / "words.json").write_text("[1,")
    refused(tmp_path, "is not JSON", good, tmp_path / "words.json")
    refused(tmp_path, f"{'a' * 60}... can't be looked up (File name too long)", good, "a" * 300)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    refused(tmp_path, "is not JSON", good, tmp_path / "bytes.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    refused(tmp_path, "is not JSON", good, tmp_path / "deep.json")
    (tmp_path / "report").mkdir()
    refused(tmp_path, "exists; choose another with --output", good, good)


def refused(place: Path, message: str, *words: object) -> None:
    """The command says `message` in one line on stderr, exits with 2, and leaves no output."""
    before = sorted(place.iterdir())
    result = gqa_compare(*words, "--output", place / "report")
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert (result.exit_code, result.stdout) == (2, "")
    assert sorted(place.iterdir()) == before
