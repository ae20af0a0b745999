"""Models that hear, trained on recordings and transcripts: held against a plain loop, killed, resumed, taught."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.uptrain import uptrain
from gqa.uptrain.batches import epoch_order
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.schedule import learning_rate
from tests.uptrain.test_resume import KILL

Configured = Callable[..., UptrainConfig]
PROMPT, LONGEST = 3, 30


@pytest.fixture(scope="session")
def whisper(make_whisper) -> Path:
    return make_whisper()


@pytest.fixture
def options(options: dict[str, Any], whisper: Path, speech: Path) -> dict[str, Any]:
    kept = {key: value for key, value in options.items() if key not in ("sequence_length", "batch_size")}
    ours = {"checkpoint": str(whisper), "data": str(speech), "validation_data": str(speech), "target_length": LONGEST}
    return kept | ours | {"batch_size": 2, "validation_tokens": 1000}


def heard(checkpoint: Path, row: dict[str, str], folder: Path) -> dict[str, torch.Tensor]:
    """What the stock class is called with for a recording, and the transcript's labels."""
    ids = torch.tensor(AutoTokenizer.from_pretrained(checkpoint)(row["text"])["input_ids"])[None, : LONGEST + 1]
    labels = ids[:, 1:].clone()
    labels[:, :PROMPT] = -100
    wave, rate = soundfile.read(folder / row["audio"], dtype="float32")
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    sound = extractor(wave, sampling_rate=rate, return_tensors="pt").input_features
    return {"input_features": sound, "decoder_input_ids": ids[:, :-1], "labels": labels}


def rows_of(speech: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in speech.read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 1, "gradient_checkpointing": True}], ids=str)
def test_it_learns_what_the_plain_loop_learns(configured: Configured, changes, metrics_of, whisper, speech):
    config = configured(**changes)
    result = uptrain(config)
    model: Any = WhisperForConditionalGeneration.from_pretrained(whisper).train()
    learning = [item for item in model.parameters() if item.requires_grad]
    groups = [
        {"params": [item for item in learning if item.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [item for item in learning if item.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    batches, losses = [heard(whisper, row, speech.parent) for row in rows_of(speech)], []
    for step in range(6):
        order = [epoch_order(config.seed, sample // 4, 4, 4)[1][sample % 4] for sample in (2 * step, 2 * step + 1)]
        counts = [int((batches[number]["labels"] != -100).sum()) for number in order]
        parts = [model(**batches[number]).loss * count for number, count in zip(order, counts, strict=True)]
        loss = torch.stack(parts).sum() / sum(counts)
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(learning, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, 6)
        optimizer.step()
        optimizer.zero_grad()
    lines = [line for line in metrics_of(result.run_dir) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    trained, expected = load_file(result.output / "model.safetensors"), model.state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=3e-4)
    stage = json.loads((result.output / "gqa.json").read_text())["stages"][-1]
    assert stage["objective"] == "transcripts"
    positions = [-(-round((0.3 + 0.2 * number) * 16000) // 320) for number in range(4)]
    tokens = [batch["labels"].numel() for batch in batches]
    assert result.tokens == 3 * (sum(positions) + sum(tokens))  # six steps of two are three times through all four
    assert (result.output / "preprocessor_config.json").is_file()


def test_validation_is_what_an_evaluation_finds(configured: Configured, whisper, speech):
    options = EvalOptions(data=str(speech), window=LONGEST, dtype="float32", device="cpu")
    (row,) = evaluate([str(whisper)], options).rows
    found = uptrain(configured(max_steps=1)).validation[0]["validation_loss"]
    assert found == pytest.approx(row.to_dict()["nll"], rel=1e-5)


def test_a_converted_one_learns_from_its_parent(configured: Configured, metrics_of, whisper, tmp_path, capfd):
    convert(whisper, tmp_path / "all", ConvertOptions(groups=4))
    convert(whisper, tmp_path / "two", ConvertOptions(groups=2))
    same = uptrain(configured(checkpoint=str(tmp_path / "all"), max_steps=1, output=tmp_path / "same", quiet=False))
    assert "by forward KL from the teacher" in capfd.readouterr().err
    (line,) = (line for line in metrics_of(same.run_dir) if "loss" in line)
    assert abs(line["loss"]) < 1e-5
    learnt = uptrain(configured(checkpoint=str(tmp_path / "two"), max_steps=30, learning_rate=3e-3))
    losses = [line["loss"] for line in metrics_of(learnt.run_dir) if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    config = json.loads((learnt.output / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"]) == ("gqa_whisper", 2)


def test_killed_in_mid_step_and_resumed(configured, flags, finish, metrics_of, tmp_path: Path):
    whole = uptrain(configured(output=tmp_path / "whole"))
    code, said = finish(flags, patch=KILL, folder=tmp_path)
    assert code == -signal.SIGKILL, said
    resumed = uptrain(configured())
    assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)
    one, other = ((result.output / "model.safetensors").read_bytes() for result in (whole, resumed))
    assert one == other


def test_other_recordings_are_other_data(configured: Configured, speech, write_sound):
    """Files that a table names count as its content: a run does not go on when they have changed."""
    result = uptrain(configured(max_steps=2))
    write_sound(speech.parent / "clips" / "0.wav", 0.6, pitch=700.0)
    with pytest.raises(UserError, match="it was started on another data: the content differs"):
        uptrain(
            configured(max_steps=2, overwrite=False, output=result.output.with_name("out2"), run_dir=result.run_dir)
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequence_length": 32}, "sequence_length is for text; recordings are cut where the model hears no more"),
        ({"target_length": 65}, "target_length 65 is beyond the model's longest sequence, 64"),
        ({"target_length": 3}, "target_length 3 holds nothing but the 3 tokens before transcripts"),
        ({"offline_teacher": True}, "offline_teacher is for decoders only"),
        ({"source_column": "clip"}, "no column 'clip'; there are: audio, text"),
    ],
)
def test_what_is_refused(configured: Configured, changes, says, whisper):
    with pytest.raises(UserError, match=says):
        uptrain(configured(**{"teacher": str(whisper)} | changes))
