"""The shapes of everything: named here and nowhere else.

B is a batch of slices, H x W the network's grid, M the number of modalities of the
complete space C, in the order of `config.data.modalities`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any  # numpy or JAX: the world of files knows only the first
Images: TypeAlias = Array  # [B, H, W, M] float, 0 is background, ~1/2 is tissue
Stacks: TypeAlias = Array  # [B, H, W, M (2 n + 1)] images, then n slices on either side
Missing: TypeAlias = Array  # [B, M] bool, True for the set A that is to be drawn
Present: TypeAlias = Array  # [B, M] bool, False where a subject was never so scanned
Times: TypeAlias = Array  # [B] float, 0 is clean and 1 is the prior
Keys: TypeAlias = Array  # [B] one random key an example
Losses: TypeAlias = Array  # [B] float
Params: TypeAlias = Any  # a pytree of arrays
Config: TypeAlias = Any  # an ml_collections ConfigDict; only build reads its fields
Denoiser: TypeAlias = Callable[[Images, Times], Images]  # E[clean | noisy, seen]
Noise: TypeAlias = Callable[..., Images]  # noise(like, *turn): normal, each turn anew


class Batch(NamedTuple):
    """What one step trains on.

    `images` are the slices and, if the network is to see any, their neighbours.
    `present[b, m]` says that subject b was scanned with modality m (its images are 0
    where not); `valid[b]` is False on rows that only pad the batch. `labels` are as
    `data.labels` has them, None where the store carries none.
    """

    images: Stacks
    present: Present
    valid: Array  # [B] bool
    labels: Array | None = None  # [B, H, W]


class Estimate(NamedTuple):
    """What one evaluation of the network tells of the clean images.

    Their `mean`, and the `variance` of each voxel about it (0 where seen), or None
    where nothing predicts it.
    """

    mean: Images
    variance: Images | None

    def map(self, change: Callable[[Array], Array]) -> "Estimate":
        """Both changed alike."""
        return Estimate(*(None if own is None else change(own) for own in self))

    def select_row(self, place: int) -> "Estimate":
        """That of one row."""
        return self.map(lambda own: own[place])


class InputError(ValueError):
    """Something about the user's input is wrong; the message says what to do.

    Raised at the border (config, files, flags) only, and shown without a traceback.
    """
