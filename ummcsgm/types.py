"""Array types with their shapes, the batch of a step, and errors of the user's input.

B is a batch of slices, H x W the network's grid, M the number of modalities of the
complete space C, in the order of `config.data.modalities`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any  # numpy or JAX; `data` and `qc` use numpy only
Images: TypeAlias = Array  # [B, H, W, M] float, 0 is background, ~1/2 is tissue
Stacks: TypeAlias = Array  # [B, H, W, M (2 n + 1)] images, then n slices on either side
Missing: TypeAlias = Array  # [B, M] bool, True on the missing set A
Present: TypeAlias = Array  # [B, M] bool, False where a subject has no such scan
Times: TypeAlias = Array  # [B] float, 0 is clean and 1 is the prior
Keys: TypeAlias = Array  # [B] a random key for each example
Losses: TypeAlias = Array  # [B] float
Params: TypeAlias = Any  # a pytree of arrays
Config: TypeAlias = Any  # an ml_collections ConfigDict; only build reads its fields
Denoiser: TypeAlias = Callable[[Images, Times], Images]  # E[clean | noisy, seen]
Noise: TypeAlias = Callable[..., Images]  # noise(like, *address): standard normal


class Batch(NamedTuple):
    """The examples of a training step.

    `images` are slices, with their neighbours if the network sees any. `present[b, m]`: subject b
    was scanned with modality m (else its images are 0). `valid[b]` is False for an example that
    only pads the batch. `labels` are those of `data.labels`, None where the store has none.
    """

    images: Stacks
    present: Present
    valid: Array  # [B] bool
    labels: Array | None = None  # [B, H, W]


class Estimate(NamedTuple):
    """The mean of the clean images from one network evaluation, and the variance of each
    voxel (0 where seen), None if the network predicts none."""

    mean: Images
    variance: Images | None

    def map(self, function: Callable[[Array], Array]) -> "Estimate":
        """`function` applied to mean and variance."""
        return Estimate(*(None if array is None else function(array) for array in self))

    def select_row(self, index: int) -> "Estimate":
        """The estimate of one example."""
        return self.map(lambda array: array[index])


class InputError(ValueError):
    """A config, file or flag is wrong; the message says what to do, and is shown without
    a traceback."""
