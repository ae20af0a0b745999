"""Models that hear, scored on recordings and their transcripts: against transformers' own loss, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from gqa.convert.errors import UserError
from gqa.convert.modeling import register
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions

PROMPT = 3  # of language, task and no timestamps, behind the start token


@pytest.fixture(scope="session")
def whisper(make_whisper) -> Path:
    return make_whisper()


def rows_of(speech: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in speech.read_text().splitlines()]


def run(checkpoints: list[Path], data: Path, **options: Any) -> Any:
    given = {"device": "cpu", "window": 64} | options
    return evaluate([str(checkpoint) for checkpoint in checkpoints], EvalOptions(data=str(data), **given))


@torch.no_grad()
def own_nll(checkpoint: Path, waves: list[np.ndarray], texts: list[str], longest: int = 64) -> tuple[float, int]:
    """The sum of what transformers' own class makes of every transcript by itself, and how many tokens that is."""
    model: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    total, count = 0.0, 0
    for wave, text in zip(waves, texts, strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])[None, : longest + 1]
        labels = ids[:, 1:].clone()
        labels[:, :PROMPT] = -100
        heard = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
        loss = model(heard, decoder_input_ids=ids[:, :-1], labels=labels).loss
        scored = int((labels != -100).sum())
        total, count = total + loss.item() * scored, count + scored
    return total, count


def test_it_is_the_loss_of_transformers_own_class(whisper, speech):
    report = run([whisper], speech, batch_size=3)
    row, rows = report.rows[0].to_dict(), rows_of(speech)
    waves = [soundfile.read(speech.parent / entry["audio"], dtype="float32")[0] for entry in rows]
    total, count = own_nll(whisper, waves, [entry["text"] for entry in rows])
    assert row["sample"]["tokens"] == count
    assert row["nll"] == pytest.approx(total / count, rel=1e-5)
    assert row["sample"]["objective"] == "speech"
    assert row["sample"]["seconds"] == pytest.approx(0.3 + 0.5 + 0.7 + 0.9)
    assert row["sample"]["bytes"] == sum(len(entry["text"].encode()) for entry in rows)


def test_without_prompt_it_is_the_loss_for_labels_alone(make_whisper, speech, tmp_path):
    """With nothing but the start token in front, labels are all that transformers' class needs."""
    checkpoint = make_whisper("plain")
    config = json.loads((checkpoint / "tokenizer.json").read_text())
    config["post_processor"] = None
    (checkpoint / "tokenizer.json").write_text(json.dumps(config))
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    row = run([checkpoint], speech, max_tokens=1).rows[0].to_dict()
    model: Any = WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    from transformers import AutoTokenizer

    first = rows_of(speech)[0]
    labels = torch.tensor(AutoTokenizer.from_pretrained(checkpoint)(first["text"])["input_ids"])[None]
    wave, rate = soundfile.read(speech.parent / first["audio"], dtype="float32")
    heard = WhisperFeatureExtractor.from_pretrained(checkpoint)(wave, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        loss = model(heard.input_features, labels=labels).loss.item()
    assert (row["sample"]["pairs"], row["sample"]["tokens"]) == (1, labels.numel())
    assert row["nll"] == pytest.approx(loss, rel=1e-5)


def test_a_converted_one_is_compared_and_its_cache_is_smaller(whisper, speech, tmp_path):
    convert(whisper, tmp_path / "all", ConvertOptions(groups=4))
    convert(whisper, tmp_path / "two", ConvertOptions(groups=2, method="lowrank"))
    register("gqa_whisper")
    report = run([whisper, tmp_path / "all", tmp_path / "two"], speech, max_tokens=40)
    before, same, after = (row.to_dict() for row in report.rows)
    assert same["nll"] == pytest.approx(before["nll"], rel=1e-5)
    assert after["nll"] != pytest.approx(before["nll"], rel=1e-3)
    layers, width = 2, 8 * 4
    for row, heads in ((before, 4), (after, 2)):
        cache = row["kv_cache"]
        assert cache["bytes_per_token"] == cache["cross"]["bytes_per_token"] == 2 * layers * heads * width
        assert cache["formula_bytes"] == cache["measured_bytes"]
        assert (cache["context"], cache["cross"]["context"]) == (64, 50)


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_forms_that_data_comes_in(whisper, speech, tmp_path):
    """Names and folders of all kinds, bytes in a table as datasets writes them: all of them one and the same."""
    rows, expected = rows_of(speech), run([whisper], speech).rows[0].to_dict()
    absolute = [{"path": str(speech.parent / row["audio"]), "sentence": row["text"]} for row in rows]
    held = [
        {"audio": {"bytes": (speech.parent / row["audio"]).read_bytes(), "path": None}, "text": row["text"]}
        for row in rows
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, row in enumerate(rows):
        wave, rate = soundfile.read(speech.parent / row["audio"], dtype="int16")
        soundfile.write(folder / f"{number}.flac", wave, rate, subtype="PCM_16")
    named = [{"file_name": f"{number}.flac", "text": row["text"]} for number, row in enumerate(rows)]
    written(named, folder / "metadata.jsonl")
    columns = {"source_column": "path", "target_column": "sentence"}
    forms: list[tuple[Path, dict[str, str]]] = [
        (written(absolute, tmp_path / "absolute.jsonl"), columns),
        (written(held, tmp_path / "held.parquet"), {}),
        (folder, {"source_column": "file_name", "target_column": "text"}),
        (written([{"source": row["audio"], "target": row["text"]} for row in rows], tmp_path / "pairs.jsonl"), {}),
    ]
    for path, options in forms:
        found = run([whisper], path, **options).rows[0].to_dict()
        assert found["nll"] == expected["nll"], path
        assert found["sample"]["text_sha256"] == expected["sample"]["text_sha256"]


def test_other_rates_and_channels_are_brought_to_what_the_model_hears(whisper, speech, write_sound, tmp_path):
    """What is resampled is what would have been recorded at that rate, but for the filter's edges."""
    write_sound(tmp_path / "clips" / "rich.wav", 0.8, pitch=300.0, rate=44100, channels=2)
    write_sound(tmp_path / "clips" / "plain.wav", 0.8, pitch=300.0)
    rows = [[{"audio": f"clips/{name}.wav", "text": "The same."}] for name in ("rich", "plain")]
    rich, plain = (
        run([whisper], written(each, tmp_path / f"{name}.jsonl")).rows[0].to_dict()
        for each, name in zip(rows, ("rich", "plain"), strict=True)
    )
    assert rich["nll"] == pytest.approx(plain["nll"], abs=0.02)
    assert rich["sample"]["seconds"] == pytest.approx(0.8, abs=1e-3)


def test_what_is_too_long_is_cut_and_said(whisper, speech, write_sound, texts, tmp_path):
    write_sound(tmp_path / "clips" / "long.wav", 1.5)
    rows = [{"audio": "clips/long.wav", "text": texts[3]}, {"audio": "clips/0.wav", "text": "Short."}]
    report = run([whisper], written(rows, tmp_path / "long.jsonl"), window=20)
    sample = report.rows[0].to_dict()["sample"]
    assert (sample["sources_cut"], sample["targets_cut"]) == (1, 1)
    assert sample["seconds"] == pytest.approx(1 + 0.3)
    said = " ".join(report.notes())
    assert "1 of 2 recordings were longer than 1 seconds and were cut there" in said
    assert "1 of 2 transcripts were longer than the window" in said


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"audio": "clips/7.wav", "text": "a"},
            r"broken.jsonl:1: there is no sound file .*7.wav \(did you mean '.*.wav'",
        ),
        ({"audio": "speech.jsonl", "text": "a"}, "broken.jsonl:1: the sound can't be decoded"),
        (
            {"audio": 5, "text": "a"},
            "'audio' holds a value of type int, neither the path of a sound file nor its bytes",
        ),
        ({"audio": None, "text": "a"}, r"'audio' holds nothing \(null\), neither the path"),
        ({"audio": "clips/empty.wav", "text": "a"}, "the sound is empty; leave the row out"),
        ({"audio": "clips/0.wav", "text": None}, "'text' holds nothing"),
        ({"clip": "clips/0.wav", "text": "a"}, r"no column 'audio'; there are: clip, text \(--source-column\)"),
    ],
)
def test_recordings_that_can_not_be_used(whisper, speech, write_sound, row, says, tmp_path):
    write_sound(tmp_path / "clips" / "empty.wav", 0)
    with pytest.raises(UserError, match=says):
        run([whisper], written([row], tmp_path / "broken.jsonl"))


def test_what_else_is_refused(whisper, make_checkpoint, speech, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="stride is for decoders"):
        run([whisper], speech, stride=8)
    with pytest.raises(UserError, match="window 3 holds nothing but the 3 tokens before every transcript"):
        run([whisper], speech, window=3)
    with pytest.raises(UserError, match="is an encoder-decoder, which is scored on other tokens"):
        run([make_checkpoint(), whisper], speech)
    (tmp_path / "deaf").mkdir()
    for item in whisper.iterdir():
        if "processor" not in item.name:
            (tmp_path / "deaf" / item.name).write_bytes(item.read_bytes())
    with pytest.raises(UserError, match=r"has no preprocessor_config.json, which says how it hears; copy it"):
        run([tmp_path / "deaf"], speech)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"sound is read by soundfile and soxr, not installed here; pip install 'gqa\[au"
    ):
        run([whisper], speech)


def test_sound_and_text_are_not_compared(whisper, make_encoder_decoder, speech):
    with pytest.raises(UserError, match="hears and the other one reads; evaluate them apart"):
        run([make_encoder_decoder(), whisper], speech, source_column="audio", target_column="text")
