"""`gqa-uptrain cache-teacher`: run the teacher once over what a run will train on, and keep what was drawn from it."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache

from gqa.convert.errors import UserError
from gqa.convert.pretrained import load_config
from gqa.convert.source import read_config, resolve_checkpoint
from gqa.eval.halves import Halves
from gqa.uptrain.batches import Sampler
from gqa.uptrain.chunks import tokens_at_once
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.data import Opener
from gqa.uptrain.draws import Drawing, draw_tokens, drawing_of, numbered, open_draws, uniform_numbers, write_draws
from gqa.uptrain.model import device_of_run, teacher_type
from gqa.uptrain.oom import is_out_of_memory
from gqa.uptrain.plan import make_plan, with_tokens
from gqa.uptrain.screen import Screen
from gqa.uptrain.teacher import find_teacher, load_teacher
from gqa.uptrain.tokens import default_cache


def cache_teacher(config: UptrainConfig) -> Path:
    """Draw from the teacher at every place that the run of `config` trains on, unless that was done before.

    Returns:
        The folder of the draws.

    Raises:
        UserError: there is no teacher, or it does not fit the run or the memory of one device; the model is an
            encoder-decoder; several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("cache-teacher is one process; start it without a launcher")
    screen = Screen(quiet=config.quiet)
    checkpoint = resolve_checkpoint(config.checkpoint)
    model_config = load_config(checkpoint, encoder_decoder=True)
    plan = make_plan(config, read_config(checkpoint), processes=1)
    teacher = find_teacher(config, checkpoint, plan.sequence_length)
    if teacher.path is None:
        why = teacher.reason or "teacher is none"
        raise UserError(f"cache-teacher needs a teacher, and there is none: {why}; name one with --teacher")
    if model_config.is_encoder_decoder:
        raise UserError("cache-teacher is for decoders only; let encoder-decoders learn from the teacher itself")
    data = Opener(config=config, plan=plan, checkpoint=checkpoint, screen=screen).open(model_config)
    windows = with_tokens(plan, config, data.tokens_per_sequence).steps * plan.batch_size
    assert isinstance(data.samples, Sampler)
    cache, drawing = config.cache_dir or default_cache(), drawing_of(config, teacher.key, data.samples)
    if open_draws(cache, drawing, windows) is None:
        screen.note(f"Drawing from {teacher.path}: {drawing.draws} tokens at every place of {windows:,} windows")
        _write(config, teacher.path, data.samples, drawing, windows, screen)
    screen.note(f"The draws are in {cache / drawing.key}; --offline-teacher trains on them")
    return cache / drawing.key


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws from a teacher at every place of windows."""

    teacher: Halves
    windows: Sampler
    drawing: Drawing
    device: torch.device

    @torch.no_grad()
    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws [windows, length, draws] and entropies [windows, length] of a step's windows."""
        samples = numbered(self.windows, step)
        length, draws = self.drawing.sequence_length, self.drawing.draws
        batch = self.windows.batch(samples[:, 1]).to(self.device)
        hidden = self.teacher.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=None)
        uniform = [uniform_numbers(self.drawing.seed, int(number), length, draws) for number in samples[:, 0]]
        numbers = np.concatenate(uniform).astype(np.float32 if self.device.type == "mps" else np.float64)
        rows = hidden.flatten(0, 1), torch.from_numpy(numbers).to(self.device)
        at_once = tokens_at_once(self.teacher.vocabulary, self.device)
        chunks = zip(*(part.split(at_once) for part in rows), strict=True)
        found = [draw_tokens(self.teacher.logits(part), some, self.drawing.temperature) for part, some in chunks]
        drawn, entropy = (torch.cat(part).cpu().numpy() for part in zip(*found, strict=True))
        return drawn.reshape(len(samples), length, draws), entropy.reshape(len(samples), length)


def _write(config: UptrainConfig, path: Path, sampler: Sampler, drawing: Drawing, windows: int, screen: Screen) -> None:
    """Draw with as many windows at once as were asked for, or, where memory has not so much room, with fewer."""
    device = device_of_run()
    rows = min(config.micro_batch_size or sampler.batch_size, windows)
    with _memory_errors(path, drawing.sequence_length):
        teacher = load_teacher(path, config, teacher_type(config.precision, device))
        drawer = Drawer(
            teacher=Halves(teacher.to(device)),
            windows=replace(sampler, batch_size=rows),
            drawing=drawing,
            device=device,
        )
        while not _drawn(drawer, config.cache_dir or default_cache(), windows, screen):
            clear_device_cache(garbage_collection=True)
            rows //= 2
            screen.note(f"Out of memory with {2 * rows} windows or more at once; going on with {rows}")
            drawer = replace(drawer, windows=replace(sampler, batch_size=rows))


def _drawn(drawer: Drawer, cache: Path, windows: int, screen: Screen) -> bool:
    """Whether all was drawn; if memory is full, what there is of it stays, and fewer windows at once may do."""
    rows = drawer.windows.batch_size
    try:
        with screen.training(0, math.ceil(windows / rows)) as show:
            write_draws(
                cache,
                drawer.drawing,
                drawer,
                windows=windows,
                vocabulary=drawer.teacher.vocabulary,
                rows=rows,
                progress=lambda step: show(step, "windows"),
            )
    except (RuntimeError, MemoryError) as error:
        if rows == 1 or not is_out_of_memory(error):
            raise
        return False
    return True


@contextmanager
def _memory_errors(path: Path, length: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with the teacher {path} and one window of {length:,} tokens, and cache-teacher needs both "
            "on one device; take a larger one, a smaller --sequence-length, or let the run itself ask the teacher, "
            "which --accelerate-config fsdp2 spreads over several GPUs"
        ) from None
