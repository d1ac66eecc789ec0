"""Training batches: each is a function of the store, the seed and the step alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np

from ummcsgm.data.store import Store
from ummcsgm.types import Batch, InputError

# Threads that read batches ahead, for slow disks. On two cores one thread reads 6500
# slices of 192 x 192 x 4 a second, and four take time from training.
THREADS = max(1, min(4, len(os.sched_getaffinity(0)) // 2))
PREFETCH = 8  # batches


@dataclass(frozen=True)
class Batches:
    """The rows of every batch that this process reads."""

    dataset: grain.MapDataset

    def at(self, step: int) -> Batch:
        """The batch of `step`: the same at every call and in every run."""
        return self.dataset[step]

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yields at(step), at(step + 1) and so on without end, read ahead in threads."""
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
        return iter(self.dataset[step:].to_iter_dataset(options))


def make_batches(
    store: Store, *, batch: int, seed: int, flip: bool, process: int, processes: int
) -> Batches:
    """Batches of `batch` slices, of which this process reads its rows.

    Each epoch visits each slice once, in a new order; an epoch may end within a batch. With
    `flip`, left and right are exchanged in half of the visits. Process p of n reads the
    rows p batch / n to (p + 1) batch / n, so that the batch does not depend on n.

    Raises:
        InputError: the store is empty, or `processes` does not divide `batch`.
    """
    if len(store) == 0:
        raise InputError("there are no slices to train on: the store has no subjects")
    if batch % processes:
        raise InputError(
            f"config.train.batch is {batch}, which {processes} processes cannot share evenly"
        )
    share = batch // processes
    rows = slice(process * share, (process + 1) * share)
    visits = grain.MapDataset.range(len(store)).seed(seed).shuffle().repeat()
    visits = visits.random_map(lambda i, rng: (i, flip and rng.random() < 0.5))
    # Only numbers are batched: the slices of other processes are never read.
    visits = visits.batch(batch, drop_remainder=True)
    return Batches(visits.map(lambda visit: _read(store, visit[0][rows], visit[1][rows])))


def _read(store: Store, indices: np.ndarray, flipped: np.ndarray) -> Batch:
    """The slices at `indices`, mirrored along x where `flipped`."""
    images, present = store.read(indices)
    valid = np.ones(len(indices), bool)
    # By whole pixels, not by numbers: 10 us a slice of 192 x 192 x 4, where it was 70.
    pixels = images.view(f"V{images[0, 0, 0].nbytes}")[..., 0]
    pixels[flipped] = pixels[flipped][:, :, ::-1]
    if not store.settings.labels:
        return Batch(images, present, valid)
    return Batch(images[..., :-1], present, valid, images[..., -1])
