"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from gqa.uptrain.config import UptrainConfig


def learning_rate(config: UptrainConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: warmup, then cosine, or warmup, stable, decay.

    The warmup's last step has the peak, the run's last step `min_lr_ratio` of it.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    start = warmup if config.schedule == "cosine" else steps - math.ceil(config.decay_ratio * steps)
    progress = max(0.0, (step + 1 - start) / max(1, steps - start))  # 0 before the fall, 1 at the last step
    fall = (1 - math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else progress
    return config.learning_rate * (1 - (1 - config.min_lr_ratio) * fall)
