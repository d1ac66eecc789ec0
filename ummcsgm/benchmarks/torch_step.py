"""A training step as one writes it in PyTorch: what `train_step` runs beside ours.

The same mathematics as `matching.make_train_step` with VP and the loss `edm`: noise
drawn, images perturbed, a preconditioned network, its weighted error on what is
missing, the likelihood of its variance, clipping, Adam, EMA.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
BETA = (0.1, 20.0)  # of VP
DATA_STD = 0.25


class TorchStep:
    """step(images, missing [B, M]) -> the loss; parameters move.

    Images [B, H, W, C]: the M modalities, then neighbours, which are all given.
    """

    def __init__(self, module: nn.Module, *, variance: bool, compiled: bool):
        self.module, self.variance = module, variance
        self.forward = torch.compile(module) if compiled else module
        own = list(module.parameters())
        self.optimizer = torch.optim.Adam(own, 1e-4, betas=(0.9, 0.99), foreach=True)
        self.own, self.ema = own, [value.detach().clone() for value in own]

    def __call__(self, images: Tensor, missing: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, missing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.own, 1.0, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, [value.detach() for value in self.own], 0.01)
        return loss.detach()

    def loss(self, images: Tensor, missing: Tensor) -> Tensor:
        m = missing.shape[1]
        images, near = images[..., :m], images[..., m:] / DATA_STD
        t = torch.rand(len(images), device=images.device).clamp_min(1e-3)
        low, high = BETA
        mean = torch.exp(-0.25 * t**2 * (high - low) - 0.5 * t * low)
        level = _broad((1 - mean**2).sqrt() / mean)
        noisy = images + level * torch.randn_like(images)
        total = (level**2 + DATA_STD**2).sqrt()
        asked = missing[:, None, None]
        inputs = torch.where(asked, noisy / total, images / DATA_STD)
        inputs = torch.cat([inputs, near], -1)
        answer = self.forward(inputs, missing, 0.25 * level[:, 0, 0, 0].log())
        skip, out = DATA_STD**2 / total**2, level * DATA_STD / total
        error = (skip * noisy + out * answer[..., :m] - images).where(asked, 0.0)
        count = missing.sum(1) * images[0, ..., 0].numel()
        weight = (1 / out**2)[:, 0, 0, 0]
        loss = (weight * error.square().sum((1, 2, 3)) / count).mean()
        if not self.variance:
            return loss
        variance = (out**2 * answer[..., m:].exp()).where(asked, 1.0)
        likelihood = error.detach().square() / variance + variance.log()
        return loss + (0.5 * likelihood.sum((1, 2, 3)) / count).mean()


def _broad(values: Tensor) -> Tensor:
    return values[:, None, None, None]
