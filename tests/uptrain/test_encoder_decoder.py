"""Encoder-decoders, trained on span corruption and on pairs: held against a plain loop, killed, resumed, exported."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.eval.spans import span_corruption
from gqa.uptrain import uptrain
from gqa.uptrain.batches import Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.pairs import PairSampler, PairStore
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.tokenise import Text
from gqa.uptrain.tokens import open_stores
from tests.uptrain.test_resume import KILL

Configured = Callable[..., UptrainConfig]
Pairs = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="session")
def t5(make_encoder_decoder) -> Path:
    return make_encoder_decoder(n_positions=24)


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[Path, Path]:
    """Pairs of letters, and their letters the other way round: to train on, and to validate on."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, part in (("train", texts[:50]), ("held_out", texts[50:])):
        lines = [json.dumps({"source": text, "target": text[::-1][:30]}) + "\n" for text in part]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder / "train.jsonl", folder / "held_out.jsonl"


@pytest.fixture(params=["spans", "pairs"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def options(options: dict[str, Any], objective: str, t5: Path, pair_files: tuple[Path, Path]) -> dict[str, Any]:
    if objective == "pairs":
        train, held_out = map(str, pair_files)
        options = options | {"data": train, "validation_data": held_out, "target_length": 20}
    return options | {"checkpoint": str(t5), "validation_tokens": 400}


def plain_pairs(config: UptrainConfig, objective: str, step: int) -> Pairs:
    """The sources and targets of a step, one by one."""
    checkpoint, cache = Path(config.checkpoint), config.cache_dir
    assert cache
    assert config.batch_size
    if objective == "spans":
        (store, _) = open_stores(
            Text(config.sources[0].data, "text", None, "train", checkpoint, 0.0, "stream"), cache, lambda _: None
        )
        corruption = span_corruption(AutoTokenizer.from_pretrained(checkpoint), checkpoint)
        length = corruption.window(32)
        starts = Sampler(store, length, config.batch_size, config.seed).samples(step)
        found = []
        for index, start in enumerate(starts):
            made = corruption(store.read(start, length)[None].astype(np.int64), config.seed, [step * 4 + index])
            found.append((made.sources[0].tolist(), made.targets[0].tolist()))
        return found
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = [json.loads(line) for line in Path(config.sources[0].data).read_text().splitlines()]
    text = Text(config.sources[0].data, "source", None, "train", checkpoint, 0.0, "sources", "target")
    sources, targets = (open_stores(side, cache, lambda _: None)[0] for side in (text, replace(text, kind="targets")))
    order = PairSampler(PairStore(sources, targets, (32, 20), 1, 0), config.batch_size, config.seed).samples(step)
    return [
        (
            tokenizer(rows[pair]["source"], truncation=True, max_length=32)["input_ids"],
            tokenizer(rows[pair]["target"])["input_ids"][:20],
        )
        for pair in order
    ]


def loss_of(model: nn.Module, pairs: Pairs) -> torch.Tensor:
    """Mean over all tokens of the targets, by the stock class, a pair at a time."""
    losses = [
        model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss * len(target)
        for source, target in pairs
    ]
    return torch.stack(losses).sum() / sum(len(target) for _, target in pairs)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 1}, {"gradient_checkpointing": True}], ids=str)
def test_it_learns_what_the_plain_loop_learns(configured: Configured, objective, metrics_of, changes, t5):
    config = configured(**changes)
    result = uptrain(config)
    model = AutoModelForSeq2SeqLM.from_pretrained(t5).train()
    groups = [
        {"params": [item for item in model.parameters() if item.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [item for item in model.parameters() if item.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    losses, tokens = [], []
    for step in range(6):
        pairs = plain_pairs(config, objective, step)
        tokens.append(sum(len(source) + len(target) for source, target in pairs))
        loss = loss_of(model, pairs)
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, 6)
        optimizer.step()
        optimizer.zero_grad()
    lines = [line for line in metrics_of(result.run_dir) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["tokens"] for line in lines] == np.cumsum(tokens).tolist()
    assert result.tokens == sum(tokens)
    trained, expected = load_file(result.output / "model.safetensors"), model.state_dict()
    assert set(trained) <= set(expected)
    for name, tensor in trained.items():
        # a step moves a weight by 1e-2; where gradients are next to nothing, Adam makes rounding a small part of that
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=3e-4)


def test_the_output_is_a_checkpoint_with_its_provenance(configured: Configured, objective, t5):
    result = uptrain(configured())
    config, output = (json.loads((path / "config.json").read_text()) for path in (t5, result.output))
    assert output == config
    assert set(load_file(result.output / "model.safetensors")) == set(load_file(t5 / "model.safetensors"))
    model, report = AutoModelForSeq2SeqLM.from_pretrained(result.output, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.is_encoder_decoder
    stage = json.loads((result.output / "gqa.json").read_text())["stages"][-1]
    assert stage["objective"] == {"spans": "span corruption", "pairs": "pairs"}[objective]
    assert stage["tokens"] == result.tokens


def test_validation_is_what_an_evaluation_of_the_same_sequences_finds(
    configured: Configured, objective, t5, pair_files
):
    """All held-out pairs; of windows, those that are full: an evaluation's last one may be shorter."""
    from gqa.eval.evaluate import evaluate
    from gqa.eval.options import EvalOptions

    target_length = 32 if objective == "pairs" else None
    config = configured(max_steps=1, validation_tokens=10_000, target_length=target_length, batch_size=1)
    assert config.validation_data
    options = EvalOptions(data=config.validation_data, window=32, dtype="float32", device="cpu")
    (row,) = evaluate([t5], options).rows
    nlls = row.result.nlls
    if objective == "spans":
        corruption = span_corruption(AutoTokenizer.from_pretrained(t5), t5)
        length = corruption.lengths(corruption.window(32))[1]
        nlls = nlls[: len(nlls) // length * length]
    found = uptrain(config).validation[0]["validation_loss"]
    assert found == pytest.approx(float(nlls.mean()), rel=1e-5)


def test_killed_in_mid_step_and_resumed(configured, flags, finish, metrics_of, tmp_path: Path):
    whole = uptrain(configured(output=tmp_path / "whole"))
    code, said = finish(flags, patch=KILL, folder=tmp_path)
    assert code == -signal.SIGKILL, said
    resumed = uptrain(configured())
    assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)
    one, other = ((result.output / "model.safetensors").read_bytes() for result in (whole, resumed))
    assert one == other


def test_two_processes_learn_what_one_learns_and_resume(configured, flags, finish, metrics_of, tmp_path: Path):
    whole = metrics_of(uptrain(configured(output=tmp_path / "whole")).run_dir)
    undisturbed, killed = ([*flags, "--micro-batch-size", "1", "--output", str(tmp_path / n)] for n in ("two", "out"))
    code, said = finish(undisturbed, processes=2, folder=tmp_path)
    assert code == 0, said
    lines = metrics_of(tmp_path / "two.run")
    for line, expected in zip(lines, whole, strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    code, _ = finish(killed, processes=2, patch=KILL, folder=tmp_path)
    assert code != 0
    code, said = finish(killed, processes=2, folder=tmp_path)
    assert code == 0, said
    assert metrics_of(tmp_path / "out.run") == lines
    one, other = (tmp_path / name / "model.safetensors" for name in ("two", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_the_budget_counts_sources_and_targets(configured: Configured):
    """Rounded up to whole steps of the average size."""
    config = configured(max_steps=None, max_tokens=500)
    result = uptrain(config)
    per_step = uptrain(configured(max_steps=1, output=result.output.with_name("one"))).tokens
    assert result.steps == pytest.approx(500 / per_step, abs=2)
    assert abs(result.tokens - 500) < 2 * per_step


@pytest.mark.parametrize("objective", ["spans"], indirect=True)
def test_lengths_are_those_of_the_law(configured: Configured, t5):
    """A T5 has no longest sequence; its own length is the default, and that of sources."""
    result = uptrain(configured(sequence_length=None, max_steps=1))
    run = json.loads((result.run_dir / "run.json").read_text())
    assert run["plan"]["sequence_length"] == 24
    assert uptrain(configured(sequence_length=40, max_steps=1, output=result.output.with_name("long"))).steps == 1
    with pytest.raises(UserError, match="target_length is for pairs"):
        uptrain(configured(target_length=20, output=result.output.with_name("other")))


@pytest.mark.parametrize("objective", ["spans"], indirect=True)
def test_a_model_without_sentinels_needs_pairs(configured: Configured, make_encoder_decoder):
    with pytest.raises(UserError, match="which the span corruption of plain text needs; give data of sources and"):
        uptrain(configured(checkpoint=str(make_encoder_decoder(model_type="bart"))))


@pytest.mark.parametrize("objective", ["pairs"], indirect=True)
def test_bart_learns_pairs(configured: Configured, make_encoder_decoder):
    result = uptrain(configured(checkpoint=str(make_encoder_decoder(model_type="bart")), max_steps=20))
    assert result.validation[-1]["validation_loss"] < result.validation[0]["validation_loss"] - 0.5


@pytest.mark.parametrize("objective", ["pairs"], indirect=True)
def test_what_is_cut_is_said(configured: Configured, capfd):
    uptrain(configured(quiet=False, max_steps=1))
    said = capfd.readouterr().err
    assert "out of 50 pairs with" in said
    assert "targets of them cut" in said


@pytest.mark.parametrize("objective", ["pairs"], indirect=True)
def test_pairs_are_held_out_by_their_hash(configured: Configured):
    result = uptrain(configured(validation_data=None, validation_share=0.2, max_steps=1))
    assert [line["step"] for line in result.validation] == [0, 1]
    with pytest.raises(UserError, match="holds no pair of at most 3 tokens"):
        uptrain(configured(validation_tokens=3, output=result.output.with_name("other")))
