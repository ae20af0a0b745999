"""The loop, held against a plain one written here: torch's AdamW on transformers' model, a document at a time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from gqa.convert.errors import UserError
from gqa.uptrain import uptrain
from gqa.uptrain.batches import Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.optimizer import build_optimizer
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.tokenise import Text
from gqa.uptrain.tokens import TokenStore, open_stores
from gqa.uptrain.trained import Trained

Configured = Callable[..., UptrainConfig]


def documents_of(store: TokenStore, start: int, length: int) -> list[torch.Tensor]:
    """A window's tokens and the one after it, cut at the documents' starts."""
    tokens = torch.from_numpy(store.read(start, length + 1).astype(np.int64))
    cuts = [int(offset) for offset in store.starts_within(start, length + 1) if offset > 0]
    return list(tokens.tensor_split(cuts))


def loss_of(model: nn.Module, documents: list[torch.Tensor]) -> torch.Tensor:
    """Mean over all predicted tokens, each document on its own."""
    total, count = torch.zeros(()), 0
    for document in documents:
        if len(document) > 1:
            total = total + model(input_ids=document[None], labels=document[None]).loss * (len(document) - 1)
            count += len(document) - 1
    return total / count


def train_plainly(config: UptrainConfig, steps: int) -> tuple[nn.Module, list[float], list[float]]:
    """The model after `steps` steps, its losses, and its validation losses before and after."""
    checkpoint = Path(config.checkpoint)
    assert config.validation_data
    assert config.cache_dir
    assert config.sequence_length
    assert config.batch_size
    store, held_out = (
        open_stores(Text(data, "text", None, split, checkpoint, 0.0), config.cache_dir, lambda _: None)[0]
        for data, split in ((config.sources[0].data, "train"), (config.validation_data, "validation"))
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).train()
    groups = [
        {"params": [item for item in model.parameters() if item.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [item for item in model.parameters() if item.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    sampler = Sampler(store, config.sequence_length, config.batch_size, config.seed)
    windows = min(config.validation_tokens, len(held_out) - 1) // config.sequence_length
    judged = [part for place in range(windows) for part in documents_of(held_out, place * 32, 32)]
    losses, validation = [], [float(loss_of(model, judged).detach())]
    for step in range(steps):
        loss = loss_of(model, [part for start in sampler.samples(step) for part in documents_of(store, start, 32)])
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        optimizer.step()
        optimizer.zero_grad()
    return model, losses, [*validation, float(loss_of(model, judged).detach())]


@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch_size": 1}, {"micro_batch_size": 3}, {"gradient_checkpointing": True}, {"attention": "eager"}],
    ids=str,
)
def test_it_learns_what_the_plain_loop_learns(configured: Configured, metrics_of, changes: dict[str, Any]):
    config = configured(**changes)
    result = uptrain(config)
    model, losses, validation = train_plainly(config, steps=6)
    lines = metrics_of(result.run_dir)
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses, rel=1e-5)
    found = [line["validation_loss"] for line in result.validation]
    assert [found[0], found[-1]] == pytest.approx(validation, rel=1e-5)
    assert losses[-1] < losses[0] - 0.3  # it does learn
    trained = load_file(result.output / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=2e-5)


def test_every_step_and_every_validation_has_its_line(configured: Configured, metrics_of):
    config = configured(log_every=4)
    result = uptrain(config)
    lines = metrics_of(result.run_dir)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 3, 6]
    assert [line["tokens"] for line in lines if "loss" in line] == [128 * step for step in range(1, 7)]
    for step, line in enumerate((line for line in lines if "loss" in line), start=0):
        assert line["learning_rate"] == learning_rate(config, step, 6)
        assert line["grad_norm"] > 0
    for line in lines:
        if "validation_loss" in line:
            assert line["validation_perplexity"] == math.exp(line["validation_loss"])
    assert (result.steps, result.tokens) == (6, 768)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"max_tokens": 257}, 3),
        ({"max_tokens": 256}, 2),
        ({"alpha": 0.05, "pretraining_tokens": 5000}, 2),
        ({"max_steps": 1}, 1),
    ],
    ids=str,
)
def test_the_budget_is_rounded_up_to_whole_steps(configured: Configured, budget: dict[str, Any], steps: int):
    result = uptrain(configured(**({"max_steps": None} | budget)))
    assert (result.steps, result.tokens) == (steps, steps * 128)


def test_without_validation_there_is_none(configured: Configured):
    assert uptrain(configured(validation_tokens=0, max_steps=1)).validation == []
    assert uptrain(configured(validation_data=None, validation_share=0.0, max_steps=1, overwrite=True)).validation == []


def test_held_out_documents_validate(configured: Configured):
    result = uptrain(configured(validation_data=None, validation_share=0.2, max_steps=1))
    assert [line["step"] for line in result.validation] == [0, 1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(
    configured: Configured, monkeypatch, metrics_of
):
    from gqa.uptrain.objective import NextTokenLoss

    calls, forward = [0], NextTokenLoss.forward

    def break_down(self: NextTokenLoss, *batch: torch.Tensor) -> torch.Tensor:
        calls[0] += self.training
        return forward(self, *batch) * (math.nan if calls[0] > 4 else 1.0)

    monkeypatch.setattr(NextTokenLoss, "forward", break_down)
    config = configured(log_every=1, max_bad_steps=1)
    with pytest.raises(UserError, match="step 5: the last 1 steps had to be left out"):
        uptrain(config)
    assert config.output
    assert not config.output.exists()
    run = config.output.with_name("out.run")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-2", "step-4"]
    assert [line["step"] for line in metrics_of(run) if "loss" in line] == [1, 2, 3, 4, 5]


def test_only_matrices_decay(checkpoint: Path, configured: Configured):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    optimizer = build_optimizer(model, configured(weight_decay=0.3), torch.device("cpu"), Trained(words="all"))
    decay = {id(item): group["weight_decay"] for group in optimizer.param_groups for item in group["params"]}
    assert {name: decay[id(item)] for name, item in model.named_parameters()} == {
        name: 0.0 if "norm" in name else 0.3 for name, _ in model.named_parameters()
    }


def test_small_updates_of_bf16_weights_are_not_lost(make_checkpoint, configured: Configured, tokenizer):
    """At this learning rate no bf16 weight would move by itself; the masters do, and add up."""
    source = make_checkpoint(dtype=torch.bfloat16)
    common = {"checkpoint": str(source), "learning_rate": 1e-5, "weight_decay": 0.0, "precision": "bfloat16"}
    result = uptrain(configured(**common, dtype="float32"))
    before, after = (load_file(path / "model.safetensors") for path in (source, result.output))
    for name, tensor in after.items():
        moved = (tensor - before[name].float()).abs()
        used = (
            moved[tokenizer("abcdef")["input_ids"]] if "embed" in name else moved
        )  # what never occurs has no gradient
        assert (used > 0).float().mean() > 0.9, name
        assert moved.max() < 1e-4, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("words", "tolerance"), [([], 1e-3), (["--precision", "bfloat16"], 2e-2), (["--compile"], 1e-3)]
)
def test_a_gpu_learns_the_same(
    flags: list[str], finish, configured: Configured, metrics_of, words: list[str], tolerance: float, tmp_path: Path
):
    code, said = finish([*flags, *words], gpu=True, folder=tmp_path)
    assert code == 0, said
    assert "on cuda" in said
    expected = metrics_of(uptrain(configured(output=tmp_path / "cpu")).run_dir)
    for line, other in zip(metrics_of(tmp_path / "out.run"), expected, strict=True):
        for key in ("loss", "validation_loss"):
            assert line.get(key) == pytest.approx(other.get(key), rel=tolerance)


def test_one_process_has_no_double_on_its_device(configured: Configured, monkeypatch: pytest.MonkeyPatch):
    """MPS knows none: what is summed in float64 is summed by the host."""
    reduce = Accelerator.reduce

    def noting(self: Accelerator, tensor: torch.Tensor, *how: Any) -> Any:
        assert tensor.dtype != torch.float64
        return reduce(self, tensor, *how)

    monkeypatch.setattr(Accelerator, "reduce", noting)
    assert uptrain(configured(max_steps=1)).validation
