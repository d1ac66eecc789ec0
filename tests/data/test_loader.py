"""A batch is a function of the step, and an epoch sees each slice once."""

import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from ummcsgm.data import loader as module
from ummcsgm.data.crop import CropWindow, SliceView
from ummcsgm.data.loader import make_batches
from ummcsgm.data.store import Store, StoredSubject, StoreSettings
from ummcsgm.types import Batch, InputError

GRID = (4, 6)
COUNTS = {"a": 5, "b": 3, "c": 5}  # 13 slices: no multiple of the batch
SINGLE = {"process": 0, "processes": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Slice i holds the value i + 1 in its left half and -(i + 1) in its right."""
    settings = StoreSettings(("t1", "t2"), SliceView(GRID, 0.0, masked=False, neighbours=0), 0.0)
    entries = tuple(entry(name, count) for name, count in COUNTS.items())
    path = tmp_path_factory.mktemp("store") / "train.npy"
    store = Store(path, settings, entries)
    images = np.ones((13, *GRID, 2), np.float16)
    images[:, :, 3:] = -1
    images *= np.arange(1, 14)[:, None, None, None]
    images[..., 1] *= 2
    images[5:8, ..., 1] = 0  # of b
    path.write_bytes(store.header + images.tobytes())
    return store


def entry(name, count):
    return StoredSubject(
        name=name,
        group="",
        patient=name,
        slices=tuple(range(count)),
        scales={"t1": 1.0, "t2": None if name == "b" else 1.0},
        ranges={"t1": (0.0, 1.0), "t2": None if name == "b" else (0.0, 1.0)},
        present=(True, name != "b"),
        window=CropWindow(GRID, (0, 0), GRID),
        shape=(6, 4, count),
        affine=(),
        spacing=(1.0, 1.0),
        sources={},
        crc=0,
    )


def slices_of(batch):
    """The number of the slice in each row, and whether it is mirrored."""
    left = batch.images[:, 0, 0, 0]
    return (np.abs(left) - 1).astype(int).tolist(), (left < 0).tolist()


def order(batches, steps):
    return sum((slices_of(batches.at(step))[0] for step in range(steps)), [])


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_holds_the_slices_and_what_is_present(store):
    batches = make_batches(store, batch=4, seed=0, flip=False, **SINGLE)
    for step in range(8):
        batch = batches.at(step)
        indices, mirrored = slices_of(batch)
        assert isinstance(batch, Batch) and not any(mirrored)
        assert batch.images.dtype == np.float16 and batch.images.shape == (4, *GRID, 2)
        images, present = store.read(np.array(indices))
        assert np.array_equal(batch.images, images)
        assert np.array_equal(batch.present, present)
        assert batch.present.tolist() == [[True, not 5 <= i < 8] for i in indices]
        assert batch.present.dtype == bool
        assert batch.valid.dtype == bool and batch.valid.tolist() == [True] * 4


def test_each_epoch_visits_each_slice_once_in_an_order_of_its_own(store):
    visits = order(make_batches(store, batch=4, seed=0, flip=True, **SINGLE), 13)
    epochs = [tuple(visits[13 * k : 13 * (k + 1)]) for k in range(4)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len(set(epochs)) == 4 and tuple(range(13)) not in epochs


def test_the_seed_sets_the_order(store):
    orders = [
        order(make_batches(store, batch=4, seed=seed, flip=True, **SINGLE), 3) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_is_the_same_at_every_call_and_in_every_run(store):
    first = make_batches(store, batch=4, seed=3, flip=True, **SINGLE)
    second = make_batches(store, batch=4, seed=3, flip=True, **SINGLE)
    forwards = [first.at(step) for step in range(9)]
    backwards = [second.at(step) for step in reversed(range(9))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert same(first.at(10**9), second.at(10**9))


@pytest.mark.parametrize("start", [0, 7, 10**6])
def test_reading_ahead_from_any_step_gives_the_batches_of_the_steps(store, start):
    batches = make_batches(store, batch=4, seed=3, flip=True, **SINGLE)
    ahead = list(islice(batches.from_step(start), 25))
    assert all(same(batch, batches.at(start + k)) for k, batch in enumerate(ahead))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_one_batch_row_by_row(store, processes):
    whole = make_batches(store, batch=6, seed=3, flip=True, **SINGLE)
    parts = [
        make_batches(store, batch=6, seed=3, flip=True, process=process, processes=processes)
        for process in range(processes)
    ]
    for step in (0, 1, 5, 100):
        shares = [part.at(step) for part in parts]
        assert {len(share.images) for share in shares} == {6 // processes}
        arrays = [share[:3] for share in shares]  # this store carries no labels
        together = [np.concatenate(field) for field in zip(*arrays, strict=True)]
        assert same(whole.at(step)[:3], together)


def test_a_process_reads_its_rows_only(store):
    read = []

    class Watched(Store):
        def read(self, indices):
            read.extend(indices.tolist())
            return super().read(indices)

    watched = Watched(store.path, store.settings, store.subjects)
    share = {"process": 1, "processes": 3}
    make_batches(watched, batch=6, seed=3, flip=True, **share).at(0)
    whole = make_batches(store, batch=6, seed=3, flip=True, **SINGLE).at(0)
    assert read == slices_of(whole)[0][2:4]


def test_a_flip_mirrors_the_last_axis_of_space_in_half_of_the_visits(store):
    batches = make_batches(store, batch=8, seed=0, flip=True, **SINGLE)
    flips = []
    for step in range(50):
        batch = batches.at(step)
        for row, (index, mirrored) in enumerate(zip(*slices_of(batch), strict=True)):
            images = store.read(np.array([index]))[0][0]
            expected = images[:, ::-1] if mirrored else images
            assert np.array_equal(batch.images[row], expected)
            flips.append((index, mirrored))
    assert 160 < sum(mirrored for _, mirrored in flips) < 240  # of 400: 200 +- 4 sd
    assert len(set(flips)) == 26  # each slice both ways: drawn anew at each visit


def test_an_empty_store_and_a_batch_that_cannot_be_shared_are_refused(store):
    with pytest.raises(InputError, match="no slices"):
        make_batches(replace(store, subjects=()), batch=4, seed=0, flip=True, **SINGLE)
    with pytest.raises(InputError, match=r"config\.train\.batch is 6, which 4"):
        make_batches(store, batch=6, seed=0, flip=True, process=0, processes=4)


def test_a_batch_may_be_larger_than_the_store(store):
    batch = make_batches(store, batch=30, seed=0, flip=False, **SINGLE).at(0)
    indices, _ = slices_of(batch)
    assert sorted(indices[:13]) == sorted(indices[13:26]) == list(range(13))


def test_a_mirrored_slice_has_its_pixels_whole(tmp_path):
    """With any number of modalities and all values different, none goes astray."""
    for modalities in (1, 2, 3, 4, 5):
        names = tuple(f"m{k}" for k in range(modalities))
        settings = StoreSettings(names, SliceView(GRID, 0.0, masked=False, neighbours=0), 0.0)
        subject = replace(entry("a", 1), present=(True,) * modalities)
        store = Store(tmp_path / f"{modalities}.npy", settings, (subject,))
        image = np.arange(1, 1 + 24 * modalities, dtype=np.float16)
        image = image.reshape(1, *GRID, modalities)
        store.path.write_bytes(store.header + image.tobytes())
        batch = make_batches(store, batch=32, seed=0, flip=True, **SINGLE).at(0)
        mirrored = [np.array_equal(picture, image[0, :, ::-1]) for picture in batch.images]
        straight = [np.array_equal(picture, image[0]) for picture in batch.images]
        assert any(mirrored) and any(straight)
        assert all(a != b for a, b in zip(mirrored, straight, strict=True))


def test_reading_ahead_holds_as_many_batches_as_it_says(store):
    read = []

    class Watched(Store):
        def read(self, indices):
            read.append(len(indices))
            return super().read(indices)

    watched = Watched(store.path, store.settings, store.subjects)
    batches = make_batches(watched, batch=4, seed=0, flip=False, **SINGLE)
    iterator = batches.from_step(0)
    for taken in range(1, 30):
        next(iterator)
        time.sleep(0.005)
        assert len(read) <= taken + module.PREFETCH + module.THREADS
    assert set(read) == {4}
