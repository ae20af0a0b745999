"""How far what a model's attentions put out is from what another model's do."""

import torch

from gqa.eval.attentions import AttentionOutputs
from gqa.uptrain.batches import IGNORED


def distance(found: AttentionOutputs, wanted: AttentionOutputs, labels: torch.Tensor) -> torch.Tensor:
    """The squared difference in fp32, a mean over components and layers, summed over the labels' places."""
    learnt = (labels != IGNORED).float()
    layers = [
        ((ours.float() - theirs.float()).square().mean(dim=-1) * learnt).sum()
        for ours, theirs in zip(found.outputs, wanted.outputs, strict=True)
    ]
    return torch.stack(layers).mean()
