"""What a PyTorch user would run instead: the same network, or MONAI's at equal FLOPs.

Only this file and `torch_mm_csn` import PyTorch and MONAI, of the extra `bench`.
"""

import bisect
import functools
import time

import numpy as np
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ummcsgm.benchmarks.torch_mm_csn import DTYPES, TorchMMCSN
from ummcsgm.models.mm_csn import MMCSN
from ummcsgm.types import Params

WIDTHS = range(8, 513, 8)  # of the finest level of MONAI's network
GROWTH = ((1, 2, 4), (1, 1, 2), (1, 2, 2), (1, 1, 1))  # of the widths by its levels
BETA = (0.1, 20.0)  # of the VP SDE
DATA_STD = 0.25


class MonaiUNet(nn.Module):
    """DiffusionModelUNet called as the mm-CSN is: images, missing and level in,
    [B, H, W, M] out. Three levels, one block each, and attention in the middle."""

    def __init__(self, channels: int, modalities: int, widths: tuple[int, ...]):
        super().__init__()
        self.modalities = modalities
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=channels + 2 * modalities,
            out_channels=modalities,
            channels=widths,
            num_res_blocks=1,
            attention_levels=(False, False, False),
            norm_num_groups=8,
            num_head_channels=widths[-1],
        )

    def forward(self, images: Tensor, missing: Tensor, level: Tensor) -> Tensor:
        images, neighbours = images[..., : self.modalities], images[..., self.modalities :]
        mask = missing[:, None, None].expand_as(images)
        noisy, seen = images.where(mask, 0.0), images.where(~mask, 0.0)
        inputs = torch.cat([noisy, seen, mask.float(), neighbours], -1)
        return self.unet(inputs.permute(0, 3, 1, 2), 250.0 * (level + 2)).permute(0, 2, 3, 1)


class TorchStep:
    """step(images, missing [B, M]) -> the loss: a training step as PyTorch users write it.

    The same mathematics as `dsm_step.make_train_step` with VP and the `edm` loss: noise,
    perturbed images, a preconditioned network, its weighted error on the missing
    modalities, the likelihood of its variance, clipping, Adam and EMA. Images
    [B, H, W, C] are the M modalities, then neighbouring slices, which are all seen.
    """

    def __init__(self, module: nn.Module, *, variance: bool, compiled: bool):
        self.module, self.variance = module, variance
        self.forward = torch.compile(module) if compiled else module
        self.params = list(module.parameters())
        self.optimizer = torch.optim.Adam(self.params, 1e-4, betas=(0.9, 0.99), foreach=True)
        self.ema = [value.detach().clone() for value in self.params]

    def __call__(self, images: Tensor, missing: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, missing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, [value.detach() for value in self.params], 0.01)
        return loss.detach()

    def loss(self, images: Tensor, missing: Tensor) -> Tensor:
        m = missing.shape[1]
        images, neighbours = images[..., :m], images[..., m:] / DATA_STD
        t = torch.rand(len(images), device=images.device).clamp_min(1e-3)
        low, high = BETA
        mean = torch.exp(-0.25 * t**2 * (high - low) - 0.5 * t * low)
        level = ((1 - mean**2).sqrt() / mean)[:, None, None, None]
        noisy = images + level * torch.randn_like(images)
        total = (level**2 + DATA_STD**2).sqrt()
        mask = missing[:, None, None]
        inputs = torch.where(mask, noisy / total, images / DATA_STD)
        inputs = torch.cat([inputs, neighbours], -1)
        output = self.forward(inputs, missing, 0.25 * level[:, 0, 0, 0].log())
        skip, out = DATA_STD**2 / total**2, level * DATA_STD / total
        error = (skip * noisy + out * output[..., :m] - images).where(mask, 0.0)
        count = missing.sum(1) * images[0, ..., 0].numel()
        weight = (1 / out**2)[:, 0, 0, 0]
        loss = (weight * error.square().sum((1, 2, 3)) / count).mean()
        if not self.variance:
            return loss
        variance = (out**2 * output[..., m:].exp()).where(mask, 1.0)
        likelihood = error.detach().square() / variance + variance.log()
        return loss + (0.5 * likelihood.sum((1, 2, 3)) / count).mean()


class TorchNetwork:
    """A PyTorch network, trained and evaluated on one constant batch."""

    def __init__(self, module: nn.Module, batch: tuple, *, variance: bool, compiled: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images, self.missing, self.level = (
            torch.tensor(np.asarray(array), device=self.device) for array in batch
        )
        module = module.to(self.device, memory_format=torch.channels_last)
        self.parameters = sum(value.numel() for value in module.parameters())
        self.trained = TorchStep(module, variance=variance, compiled=compiled)

    def step(self) -> None:
        """One training step."""
        self.trained(self.images, self.missing)

    def answer(self) -> Tensor:
        """One forward pass."""
        with torch.inference_mode():
            return self.trained.forward(self.images, self.missing, self.level)

    def wait(self, result: object) -> None:
        """Returns when everything that was started is done; `result` is the last of it."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_torch_twin(
    network: MMCSN, params: Params, batch: tuple, *, compiled: bool
) -> TorchNetwork:
    """The mm-CSN in PyTorch, on (images [B, H, W, C], missing [B, M], level [B])."""
    module = TorchMMCSN(network, params)
    return TorchNetwork(module, batch, variance=network.predict_variance, compiled=compiled)


def make_monai(flops: float, batch: tuple, *, compiled: bool) -> tuple[TorchNetwork, dict]:
    """MONAI's network whose FLOPs an image are nearest to `flops`; its widths and FLOPs."""
    sizes = batch[0].shape[-1], batch[1].shape[-1]
    flops_by_widths: dict[tuple[int, ...], float] = {}

    def count(width: int, growth: tuple[int, ...]) -> float:
        widths = tuple(width * factor for factor in growth)
        with torch.device("meta"):
            flops_by_widths[widths] = forward_flops(MonaiUNet(*sizes, widths), batch)
        return flops_by_widths[widths]

    for growth in GROWTH:  # the two widths on either side of `flops` are counted
        bisect.bisect(WIDTHS, flops, key=functools.partial(count, growth=growth))
    widths = min(flops_by_widths, key=lambda widths: abs(flops_by_widths[widths] - flops))
    torch.manual_seed(0)
    module = MonaiUNet(*sizes, widths)
    network = TorchNetwork(module, batch, variance=False, compiled=compiled)
    return network, {"widths": widths, "gflop_an_image": flops_by_widths[widths] / 1e9}


def forward_flops(module: nn.Module, batch: tuple) -> float:
    """FLOPs of convolutions and matrix products in one image's forward pass."""
    device = next(module.parameters()).device
    example = [torch.tensor(np.asarray(array[:1]), device=device) for array in batch]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*example)
    return float(counter.get_total_flops())


def product_rate(dtype: object, size: int = 2048) -> float:
    """GFLOP/s of a product of two matrices of a network's type: the best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(size, size, device=device, dtype=DTYPES[np.dtype(dtype).name])
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the product
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def torch_has_gpu() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()
