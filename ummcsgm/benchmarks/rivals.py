"""What a PyTorch user would run instead: the twin, and MONAI's network at equal FLOPs.

Only this file, `twin` and `torch_step` meet PyTorch and MONAI, of the extra `bench`.
"""

import bisect
import functools
import time

import numpy as np
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ummcsgm.benchmarks.torch_step import TorchStep
from ummcsgm.benchmarks.twin import DTYPES, Twin
from ummcsgm.models.mm_csn import MMCSN
from ummcsgm.types import Params

WIDTHS = range(8, 513, 8)  # of the finest level of MONAI's network
GROWTH = ((1, 2, 4), (1, 1, 2), (1, 2, 2), (1, 1, 1))  # of the widths by its levels


class Monai(nn.Module):
    """DiffusionModelUNet asked as mm-CSN is: images, what is given, and the code in,
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
        images, near = images[..., : self.modalities], images[..., self.modalities :]
        asked = missing[:, None, None].expand_as(images)
        noisy, seen = images.where(asked, 0.0), images.where(~asked, 0.0)
        given = torch.cat([noisy, seen, asked.float(), near], -1)
        return self.unet(given.permute(0, 3, 1, 2), 250.0 * (level + 2)).permute(0, 2, 3, 1)


class Rival:
    """A PyTorch network that is trained and asked on one constant batch."""

    def __init__(self, module: nn.Module, batch: tuple, *, variance: bool, compiled: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images, self.missing, self.level = (
            torch.tensor(np.asarray(own), device=self.device) for own in batch
        )
        own = module.to(self.device, memory_format=torch.channels_last)
        self.parameters = sum(value.numel() for value in own.parameters())
        self.trained = TorchStep(own, variance=variance, compiled=compiled)

    def step(self) -> None:
        """One training step."""
        self.trained(self.images, self.missing)

    def answer(self) -> Tensor:
        """One forward pass."""
        with torch.inference_mode():
            return self.trained.forward(self.images, self.missing, self.level)

    def wait(self, result: object) -> None:
        """Returns when all that was asked, `result` the last of it, is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_twin(network: MMCSN, params: Params, batch: tuple, *, compiled: bool) -> Rival:
    """The twin of a network, on (images [B, H, W, M], missing [B, M], level [B])."""
    own = Twin(network, params)
    return Rival(own, batch, variance=network.predict_variance, compiled=compiled)


def make_monai(flops: float, batch: tuple, *, compiled: bool) -> tuple[Rival, dict]:
    """MONAI's network with the number of FLOPs an image nearest to `flops`, and its
    widths and FLOPs."""
    sizes = batch[0].shape[-1], batch[1].shape[-1]

    def counted(widths: tuple[int, ...]) -> float:
        with torch.device("meta"):
            return forward_flops(Monai(*sizes, widths), batch)

    found: dict[tuple[int, ...], float] = {}

    def told(width: int, growth: tuple[int, ...]) -> float:
        widths = tuple(width * own for own in growth)
        found[widths] = counted(widths)
        return found[widths]

    for growth in GROWTH:  # the two on either side are among those that are tried
        bisect.bisect(WIDTHS, flops, key=functools.partial(told, growth=growth))
    widths = min(found, key=lambda own: abs(found[own] - flops))
    torch.manual_seed(0)
    rival = Rival(Monai(*sizes, widths), batch, variance=False, compiled=compiled)
    return rival, {"widths": widths, "gflop_an_image": found[widths] / 1e9}


def forward_flops(module: nn.Module, batch: tuple) -> float:
    """FLOPs of convolutions and matrix products in one image's forward pass."""
    device = next(module.parameters()).device
    first = [torch.tensor(np.asarray(own[:1]), device=device) for own in batch]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*first)
    return float(counter.get_total_flops())


def product_rate(dtype: object, size: int = 2048) -> float:
    """GFLOP/s of a product of two matrices of a network's type: the best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = DTYPES[np.dtype(dtype).name]
    matrix = torch.ones(size, size, device=device, dtype=kind)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # awaited
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def torch_has_gpu() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()
