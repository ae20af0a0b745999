"""The learning rate of every step."""

import math

import pytest

from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.schedule import learning_rate


def rates(steps: int, **options) -> list[float]:
    config = UptrainConfig(checkpoint="ckpt", data="text", max_steps=steps, learning_rate=2.0, **options)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_cosine():
    found = rates(10, warmup_ratio=0.2, min_lr_ratio=0.1)
    falling = [2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * part / 8)) / 2) for part in range(1, 9)]
    assert found == pytest.approx([1.0, 2.0, *falling])
    assert found[-1] == pytest.approx(0.2)


def test_wsd():
    found = rates(10, schedule="wsd", warmup_ratio=0.2, decay_ratio=0.4, min_lr_ratio=0.0)
    assert found == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_wsd_without_decay_holds_to_the_end():
    assert rates(4, schedule="wsd", warmup_ratio=0.0, decay_ratio=0.0) == [2.0] * 4


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_it_never_leaves_its_bounds(schedule: str, steps: int):
    for warmup in (0.0, 0.01, 0.5):
        found = rates(steps, schedule=schedule, warmup_ratio=warmup, decay_ratio=0.5, min_lr_ratio=0.05)
        assert all(
            0.1 - 1e-12 <= rate <= 2.0 + 1e-12 or index < math.ceil(warmup * steps) for index, rate in enumerate(found)
        )
        assert min(found) > 0


def test_warmup_over_the_whole_run():
    assert rates(4, warmup_ratio=1.0) == pytest.approx([0.5, 1.0, 1.5, 2.0])
