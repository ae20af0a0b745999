"""report.html as text: what is in it, that it fetches nothing, and that what comes from checkpoints stays text."""

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gqa.eval.document import Document
from gqa.eval.page import palette
from gqa.eval.page.draw import picture
from gqa.eval.page.page import POLICY
from gqa.eval.page.tradeoff import for_cards, front
from gqa.eval.written import write_files

ALLOWED = (
    "a article bdi body br code dd defs desc details div dl dt fieldset figcaption figure g h1 h2 h3 h4 head header"
)
ALLOWED += (
    " html input label legend li link main meta p path pre rect section script span style summary svg table tbody"
)
ALLOWED += " td text th thead title tr ul use clippath"
LINKS = ("src", "href", "xlink:href", "action", "srcset", "data", "poster")


class Elements(HTMLParser):
    """Every element's name and attributes, and the text of all and of the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(params=["real", "whole", "hostile", "many"])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue(request.param)


def test_nothing_in_it_runs_or_is_fetched(report, page_of):
    elements = Elements(page_of(report))
    assert {name for name, _ in elements.found} <= set(ALLOWED.split())
    assert [attributes for name, attributes in elements.found if name == "script"] == [
        {"type": "application/json", "id": "report"}
    ]
    for _, attributes in elements.found:
        assert not [key for key in attributes if key.startswith("on")]
        for key in LINKS:
            assert (attributes.get(key) or "#").startswith(("#", "data:,")), (key, attributes[key])
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    policies = [found["content"] for _, found in elements.found if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    assert "script-src" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_the_numbers_inside_are_those_of_report_json(report, page_of):
    (script,) = Elements(page_of(report)).scripts
    assert not set("<>&") & set(script)
    assert json.loads(script) == report


def test_no_id_stands_twice_and_every_reference_has_its_id(report, page_of):
    found = Elements(page_of(report)).found
    ids = Counter(attributes["id"] for _, attributes in found if "id" in attributes)
    assert [each for each, times in ids.items() if times > 1] == []
    for _, attributes in found:
        for key in ("href", "xlink:href"):
            if (attributes.get(key) or "").startswith("#"):
                assert str(attributes[key])[1:] in ids
        for each in (attributes.get("aria-labelledby") or "").split():
            assert each in ids


def test_every_picture_has_words_and_numbers(report, page_of):
    elements = Elements(page_of(report))
    pictures = [attributes for name, attributes in elements.found if name == "svg"]
    assert pictures
    assert all(each["role"] == "img" and each["aria-labelledby"] for each in pictures)
    names = [name for name, _ in elements.found]
    assert names.count("figure") == len(pictures) == names.count("desc")
    assert names.count("figcaption") == len(pictures)
    assert names.count("table") > len(pictures)


def test_hostile_words_are_there_to_be_read(hostile, page_of):
    elements = Elements(page_of(hostile))
    shown = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    assert elements.text.count(shown) > 20
    assert "\x00" not in elements.text
    assert "\x1b" not in elements.text


def test_only_what_was_measured_is_shown(real, whole, page_of):
    few, all_of_it = page_of(real), page_of(whole)
    asked_for = ("Quality against decode time", "Damage by layer", "Likeness by layer", "Change of attention entropy",
                 "Damage predicted by layer", "Perplexity by length of window", "Recall by length",
                 "Decode time by context", "Uptraining", "Tasks", "Speed and memory", "Continuations")  # fmt: skip
    always = ("Damage by position", "Divergence from “before”", "KL divergence from before")
    assert [words for words in asked_for if words in few] == []
    assert [words for words in (*asked_for, *always) if words not in all_of_it] == []
    assert [words for words in always if words not in few] == []
    without = {**real, "checkpoints": [row | {"positions": [], "divergence": None} for row in real["checkpoints"]]}
    assert [words for words in always if words in page_of(without)] == []
    assert "Quality against the KV cache" in few


def test_every_figure_of_the_report_stands_on_the_page(whole, page_of):
    text = Elements(page_of(whole)).text
    for row in whole["checkpoints"]:
        for value in (row["nll"], *(each["value"] for task in row["tasks"].values() for each in task.values())):
            assert f"{value:.4f}" in text
        assert f"{row['kv_cache']['bytes_per_token']:,.0f}" in text
        assert row["fingerprint"] in text
        assert all(each["text"].strip() in text for each in row["continuations"])
    assert whole["speed"]["words"][0] in text
    assert all(version in text for version in whole["versions"].values())


def test_the_files_of_a_hostile_report(hostile, tmp_path: Path):
    write_files(Document.model_validate(hostile), json.dumps(hostile), tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["pareto.png", "report.html", "report.json", "report.md"]
    words = (tmp_path / "report" / "report.md").read_text()
    tables = [line for line in words.splitlines() if line.startswith("|")]
    assert tables
    assert not [line for line in tables if "<" in line]


@pytest.mark.parametrize("label", ["日本語", "$\\frac{$", "_private", "%s {0}", "a" * 500])
def test_any_label_can_stand_in_the_picture(whole, label):
    report = json.loads(json.dumps(whole))
    report["checkpoints"][0]["label"] = label
    chart = for_cards(Document.model_validate(report))
    assert chart is not None
    assert picture(chart).startswith(b"\x89PNG")


def test_the_front_is_what_no_other_beats():
    assert front([(1, 5), (2, 3), (3, 4), (4, 1)]) == ((1, 5), (2, 5), (2, 3), (4, 3), (4, 1))
    assert front([(1, 1), (2, 2)]) == ((1, 1),)


@pytest.mark.parametrize("background", ["page", "card"])
def test_colours_can_be_told_from_their_background(background: str):
    named = palette.variables()
    for name, tone in named.items():
        if name in ("page", "card", "rule"):
            continue
        enough = 3 if name.startswith("series") else 4.5  # WCAG 2.2: graphics 1.4.11, text 1.4.3
        assert palette.contrast(tone.light, named[background].light) >= enough, name
        assert palette.contrast(tone.dark, named[background].dark) >= enough, name


def test_contrast_is_that_of_the_recommendation():
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's example


def test_two_checkpoints_never_look_the_same():
    looks = [palette.look(index) for index in range(len(palette.SERIES) ** 2)]
    assert len({(each.tone, each.marker) for each in looks}) == len(looks)
    assert {each.marker for each in looks} == set(palette.SHAPES)
