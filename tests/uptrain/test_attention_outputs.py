"""The term that draws attention outputs to the teacher's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gqa.eval.attentions import AttentionOutputs, attentions
from gqa.uptrain import uptrain
from gqa.uptrain.attention_outputs import distance
from gqa.uptrain.batches import IGNORED
from gqa.uptrain.lesson import Lesson


def test_attention_outputs_are_what_the_layers_get(parent: Path):
    """The residual stream behind an attention is the one before it and the attention's output."""
    model: Any = AutoModelForCausalLM.from_pretrained(parent)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    entering: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, given: leaving.append(given[0]))
    with AttentionOutputs(model) as found:
        model(input_ids=ids)
    model(input_ids=ids)  # not recorded any more
    assert len(found.outputs) == len(attentions(model)) == 2
    for output, before, after in zip(found.outputs, entering, leaving, strict=False):
        torch.testing.assert_close(output, after - before, rtol=1e-4, atol=1e-5)


def test_their_distance_is_a_mean_over_layers_and_components_and_a_sum_over_labels(parent: Path):
    model = AutoModelForCausalLM.from_pretrained(parent)
    found, wanted = AttentionOutputs(model), AttentionOutputs(model)
    found.outputs = [torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)]
    wanted.outputs = [torch.full((1, 3, 4), 2.0), torch.arange(12.0).reshape(1, 3, 4)]
    labels = torch.tensor([[5, IGNORED, 7]])
    second = (sum(x * x for x in range(4)) + sum(x * x for x in range(8, 12))) / 4
    assert float(distance(found, wanted, labels)) == pytest.approx((8 + second) / 2)


def test_the_weight_of_attention_outputs_falls_to_nothing(configured, child: Path, monkeypatch):
    weights: list[float] = []
    loss = Lesson.loss

    def watched(self: Lesson, *batch: Any) -> torch.Tensor:
        weights.append(self.attention_weight)
        return loss(self, *batch)

    monkeypatch.setattr(Lesson, "loss", watched)
    uptrain(configured(checkpoint=str(child), attention_weight=3.0))
    assert weights == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0, 0.5])
