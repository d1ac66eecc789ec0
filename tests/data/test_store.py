"""What is read from a store is what was stored in it, or is refused."""

import gc
import json
import os
import pickle
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
from tiny_slices import MODALITIES, SETTINGS, look, made, open_store, write_three

from ummcsgm.data import store as module
from ummcsgm.data.crop import uncrop
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.nifti import read_volume
from ummcsgm.data.store import SourceFile, damaged_entries, entry_from_json, read_index


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_three(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def folder(tmp_path, raw):
    """Prepared: a and b of split train, c of split test."""
    a, b, c = look(raw)
    made(tmp_path / "s", {"train": [a, b], "val": [], "test": [c]})
    return tmp_path / "s"


@pytest.fixture
def store(folder):
    return open_store(folder, "train")


def test_what_is_read_back_is_the_volume_on_its_slices(raw, store):
    assert [entry.name for entry in store.subjects] == ["a", "b"]
    for subject, entry in zip(look(raw), store.subjects, strict=False):
        assert entry.slices == (2, 3, 4, 5)  # 30 / 128 of the grid; the lowest 4 / 128
        slices = store.subject_slices(entry.name)
        assert slices.dtype == np.float32 and slices.shape == (4, 8, 16, 3)
        for channel, modality in enumerate(MODALITIES):
            if modality not in subject.files:
                assert (slices[..., channel] == 0).all()
                assert entry.scales[modality] is None
                continue
            original, _ = read_volume(subject.files[modality])
            assert entry.scales[modality] == fit_scale(original)
            again = uncrop(entry.window, slices[..., channel]) * entry.scales[modality]
            np.testing.assert_allclose(again, original[2:6], rtol=1e-3, atol=1e-3)
            assert np.array_equal(again == 0, original[2:6] == 0)


def test_slices_are_counted_through_the_subjects(store):
    assert len(store) == 8
    whole = {name: store.subject_slices(name) for name in "ab"}
    for indices in (np.arange(8), np.array([5, 0, 5, 3]), np.array([7]), np.arange(0)):
        images, present = store.read(indices)
        assert images.dtype == np.float16 and images.shape == (len(indices), 8, 16, 3)
        assert present.dtype == bool and present.shape == (len(indices), 3)
        for row, index in enumerate(indices):
            name = "ab"[index // 4]
            assert np.array_equal(images[row], whole[name][index % 4])
            assert present[row].tolist() == [True, name != "b", True]
    for index in (-1, 8):
        with pytest.raises(IndexError, match=str(index)):
            store.read(np.array([0, index]))


def test_what_is_read_is_the_readers_own(store):
    before = store.read(np.arange(8))[0]
    store.read(np.arange(8))[0][:] = 7
    assert np.array_equal(store.read(np.arange(8))[0], before)


def test_numpy_maps_the_same_slices(store):
    mapped = np.load(store.path, mmap_mode="r")
    assert isinstance(mapped, np.memmap) and mapped.dtype == np.float16
    assert mapped.shape == (8, *SETTINGS.slice_shape) and mapped.flags.c_contiguous
    assert mapped.tobytes() == store.read(np.arange(8))[0].tobytes()


def test_scales_are_those_of_the_subjects_that_have_the_modality(raw, store):
    assert set(store.scales("t1")) == {"a", "b"} and set(store.scales("t2")) == {"a"}
    original, _ = read_volume(look(raw)[0].files["t2"])
    assert store.scales("t2")["a"] == fit_scale(original)


def test_a_store_is_opened_again_and_travels_between_processes(folder, store):
    read = store.read(np.array([7]))[0]
    assert open_store(folder, "train") == store
    again = pickle.loads(pickle.dumps(store))
    assert again == store and np.array_equal(again.read(np.array([7]))[0], read)
    assert [e.name for e in open_store(folder, "test").subjects] == ["c"]


def test_the_index_has_the_splits_that_have_subjects_and_an_empty_folder_has_none(tmp_path, folder):
    assert list(read_index(folder)[1]) == ["train", "test"]
    assert read_index(tmp_path) is None


def test_the_index_says_what_each_slice_is(folder):
    fields = json.loads((folder / "index.json").read_text())
    record = fields["splits"]["train"]["subjects"][1]
    assert record["name"] == "b" and record["slices"] == [2, 3, 4, 5]
    assert record["scales"]["t2"] is None and record["present"] == [True, False, True]
    # x: the brain's 5 voxels are 1..5 after the turn, 5 cells before them and 6 after
    assert record["window"]["origin"] == [1, -4]
    assert record["window"]["grid"] == [8, 16] and record["window"]["frame"] == [11, 9]
    assert record["shape"] == [9, 11, 7] and record["spacing"] == [1, 1]
    assert record["affine"][2] == [0, 0, 2, 0] and record["affine"][0][0] == -1
    assert set(record["sources"]) == {"t1:", "flair:"}
    assert set(fields["splits"]) == {"train", "test"}


def test_an_entry_survives_json(store):
    for entry in store.subjects:
        assert entry_from_json(json.loads(json.dumps(asdict(entry)))) == entry


def flipped(path, offsets):
    """Each of `places` of the file at `path` changed in turn, and changed back."""
    with path.open("r+b", buffering=0) as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ (1 << offset % 8)]))
            yield offset
            file.seek(offset)
            file.write(byte)


def test_a_byte_flipped_anywhere_is_found_in_its_subject(store, monkeypatch):
    monkeypatch.setattr(module, "ThreadPoolExecutor", Inline)  # 6000 times as quick
    head, size = len(store.header), store.path.stat().st_size
    end_of_a = head + 4 * SETTINGS.slice_bytes
    assert size == head + 8 * SETTINGS.slice_bytes and damaged_entries(store) == []
    for offset in flipped(store.path, range(size)):
        assert damaged_entries(store) == ["a" if offset < end_of_a else "b"], offset
    assert damaged_entries(store) == []


class Inline:
    """A pool of no thread."""

    def __init__(self, _):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_file_cut_short_lengthened_or_gone_is_found(folder, store):
    whole, size = store.path.read_bytes(), store.path.stat().st_size
    cuts = {0: "ab", size // 4: "ab", size // 2 + 99: "b", size - 1: "b", size: ""}
    for length, names in cuts.items():
        store.path.write_bytes(whole[:length])
        assert damaged_entries(store) == list(names), length
    store.path.write_bytes(whole + b"\0")
    assert damaged_entries(store) == ["b"]
    store.path.unlink()
    assert damaged_entries(store) == ["a", "b"]
    assert len(open_store(folder, "test")) == 4  # the other split's array is whole


def test_a_store_that_is_cut_while_it_is_read_says_so(store):
    store.read(np.array([7]))
    with store.path.open("r+b") as file:
        file.truncate(store.path.stat().st_size - 1)
    with pytest.raises(OSError, match="cut short"):
        store.read(np.array([7]))


def test_a_store_that_is_being_read_outlives_its_removal(store):
    before = store.read(np.arange(8))[0]
    store.path.unlink()
    assert np.array_equal(store.read(np.arange(8))[0], before)


def test_a_byte_flipped_anywhere_in_the_index_is_not_trusted(folder):
    path = folder / "index.json"
    whole, before = read_index(folder), json.loads(path.read_text())
    for offset in flipped(path, range(path.stat().st_size)):
        try:
            blank = json.loads(path.read_bytes()) == before  # one space for another
        except ValueError:
            blank = False
        assert read_index(folder) == (whole if blank else None), offset


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": 3}', '{"sha256": 1}', "\udcff"]
)
def test_an_index_that_is_none_is_not_trusted(folder, text):
    (folder / "index.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_index(folder) is None


def test_an_index_of_another_format_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert read_index(folder) is None


def test_a_source_is_known_by_its_content_and_read_when_its_date_differs(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    facts = path.stat()
    source = SourceFile("file", 7, facts.st_mtime_ns, module.sha256_of_file(path))
    read = []
    digest = module.sha256_of_file
    monkeypatch.setattr(module, "sha256_of_file", lambda p: read.append(p) or digest(p))
    assert source.if_unchanged(path) == source and not read

    later = facts.st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert source.if_unchanged(path) == replace(source, time=later) and len(read) == 1
    path.write_bytes(b"another")
    os.utime(path, ns=(later, later))
    assert source.if_unchanged(path) is None and len(read) == 2
    # The one change that is not seen: of the same length, with the date set back.
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    assert source.if_unchanged(path) == source and len(read) == 2

    path.write_bytes(b"longer content")
    assert source.if_unchanged(path) is None
    path.rename(tmp_path / "renamed")
    assert source.if_unchanged(tmp_path / "renamed") is None
    assert source.if_unchanged(path) is None


def test_threads_read_what_one_reads(store):
    expected, wrong = store.read(np.arange(8))[0], []
    fresh = pickle.loads(pickle.dumps(store))  # whose file no thread has opened

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, 8, 300):
            if not np.array_equal(fresh.read(index[None])[0][0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_store_holds_one_file_open_and_none_once_it_is_gone(folder):
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    store = open_store(folder, "train")
    for index in range(8):
        store.read(np.array([index]))
    assert len(os.listdir("/dev/fd")) == before + 1
    del store
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
