"""The training loop."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from gqa.uptrain.batches import Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.plan import Plan
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.validate import Validation


@dataclass
class Trainer:
    config: UptrainConfig
    plan: Plan
    accelerator: Accelerator
    module: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    validation: Validation
    rows: int

    def train(self) -> None:
        t0 = time.time()
        for step in range(self.plan.steps):
            if step % self.plan.eval_every == 0:
                print("eval", step, self.validation.loss(self.module, self.accelerator), flush=True)
            loss, norm = self.step(step)
            if step % self.config.log_every == 0:
                print(step, loss.item(), norm.item(), (step + 1) * self.plan.tokens_per_step / (time.time() - t0), flush=True)
        print("eval", self.plan.steps, self.validation.loss(self.module, self.accelerator), flush=True)

    def step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        accelerator = self.accelerator
        rate = learning_rate(self.config, step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        starts = self.sampler.window_starts(step)
        targets = max(1, self.sampler.targets(starts))
        share = len(starts) // accelerator.num_processes
        mine = starts[accelerator.process_index * share :][:share]
        parts = self.sampler.batch(mine).to(accelerator.device).micro_batches(self.rows)
        total = torch.zeros((), device=accelerator.device)
        for index, part in enumerate(parts):
            with nullcontext() if index == len(parts) - 1 else accelerator.no_sync(self.module):
                loss = self.module(*part) / targets
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm
