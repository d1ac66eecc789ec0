"""Slices are made once, are made anew when they must be, and never half."""

import collections
import contextlib
import io
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import filelock
import numpy as np
import pytest
from tiny_slices import (
    AFFINE,
    MODALITIES,
    SETTINGS,
    content,
    look,
    made,
    open_store,
    volume,
    write_subject,
    write_three,
)

from ummcsgm.data import build_store as module
from ummcsgm.data import subjects as subjects_module
from ummcsgm.data.crop import SliceView
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import write_new
from ummcsgm.data.store import damaged_entries, read_index
from ummcsgm.data.subjects import network_slices, prepare_subject
from ummcsgm.types import InputError
from ummcsgm.utils import pool
from ummcsgm.utils.atomic_io import atomic_writer, sha256_of_file


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Read only."""
    return write_three(tmp_path_factory.mktemp("three"))


@pytest.fixture
def raw(tmp_path, three):
    """The three subjects, for a test that may change them."""
    return shutil.copytree(three, tmp_path / "raw")


@pytest.fixture
def read(monkeypatch):
    """The names of the subjects that are read from NIfTI, in turn."""
    names = []

    def read_and_note(files, volumes):
        names.append(next(iter(files.values())).parent.name)
        return read_volumes(files, volumes)

    read_volumes = subjects_module.read_volumes
    monkeypatch.setattr(subjects_module, "read_volumes", read_and_note)
    return names


def in_two(folder):
    """Of the subjects in `folder`: train has c and a, test has b."""
    a, b, c = look(folder)
    return {"train": [c, a], "val": [], "test": [b]}


def slices_of(stores):
    """What each subject's slices are, whatever its split."""
    return {name: slices for (_, name), slices in places_of(stores).items()}


def places_of(stores):
    """What the slices are by split and subject, in order."""
    return {
        (split, entry.name): store.subject_slices(entry.name).tobytes()
        for split, store in stores.items()
        for entry in store.subjects
    }


# What is made


def test_each_split_is_one_array_of_its_subjects_in_their_order(tmp_path, raw):
    stores, reports = made(tmp_path / "s", in_two(raw))
    assert list(stores) == ["train", "test"]
    names = {s: [e.name for e in store.subjects] for s, store in stores.items()}
    assert names == {"train": ["c", "a"], "test": ["b"]}
    arrays = {store.path.name for store in stores.values()}
    assert set(content(tmp_path / "s")) == {"index.json", *arrays}
    for split, store in stores.items():
        assert store.path.name.startswith(f"{split}-") and store.path.is_file()
        assert open_store(tmp_path / "s", split) == store
    assert reports == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("spacing", [0.0, 0.7, 1.3])
def test_the_slices_are_those_the_network_is_to_see(tmp_path, raw, spacing):
    view = SliceView((12, 16), spacing, masked=False, neighbours=0)
    settings = replace(SETTINGS, view=view, min_brain=0.05)
    stores, _ = made(tmp_path / "s", {"train": look(raw)}, settings)
    for subject, entry in zip(look(raw), stores["train"].subjects, strict=True):
        prepared = prepare_subject(subject, MODALITIES, view)
        assert prepared.window.step == ((1, 1) if not spacing else (spacing, spacing))
        expected = network_slices(prepared, MODALITIES, np.array(entry.slices))
        stored = stores["train"].subject_slices(entry.name)
        assert np.array_equal(stored, expected.astype(np.float16))
        assert entry.window == prepared.window and stored.any()


def test_a_slice_is_stored_if_its_brain_is_above_the_least_part(tmp_path, raw):
    first = {"train": look(raw)[:1]}
    for least, slices in ((0.0, 6), (3.9 / 128, 6), (4 / 128, 4), (29.9 / 128, 4)):
        stores, _ = made(tmp_path / "s", first, replace(SETTINGS, min_brain=least))
        assert len(stores["train"]) == slices
    with pytest.raises(InputError, match=r"subject a: .*0\.234.*config.data.min_brain_fraction"):
        made(tmp_path / "s", first, replace(SETTINGS, min_brain=30 / 128))


def test_the_least_part_is_one_of_area_also_on_a_finer_grid(tmp_path, raw):
    """30 voxels of 1 mm are 30 of 8 x 16 of them, and of 16 x 32 of half a mm."""
    fine = replace(SETTINGS, view=SliceView((16, 32), 0.5, masked=False, neighbours=0))
    for least, slices in ((29.9 / 128, 4), (3.9 / 128, 6)):
        settings = replace(fine, min_brain=least)
        stores, _ = made(tmp_path / "s", {"train": look(raw)}, settings)
        assert len(stores["train"]) == 3 * slices


def test_the_channels_follow_the_modalities(tmp_path, raw):
    plain, _ = made(tmp_path / "s", in_two(raw))
    settings = replace(SETTINGS, modalities=MODALITIES[::-1])
    other, _ = made(tmp_path / "t", in_two(raw), settings)
    slices = [stores["train"].subject_slices("c") for stores in (plain, other)]
    assert np.array_equal(slices[0], slices[1][..., ::-1])
    assert not np.array_equal(*slices)


def test_an_incomplete_subject_is_marked_where_it_has_nothing(tmp_path, raw):
    stores, _ = made(tmp_path / "s", in_two(raw))
    assert [e.present for e in stores["train"].subjects] == [(True, True, True)] * 2
    assert [e.present for e in stores["test"].subjects] == [(True, False, True)]
    images, present = stores["test"].read(np.arange(4))
    assert (present == [True, False, True]).all() and not images[..., 1].any()
    assert images[..., 0].any() and images[..., 2].any()


def test_an_intensity_beyond_float16_stays_finite(tmp_path):
    values = np.random.default_rng(0).uniform(1, 2, (8, 8, 7)).astype(np.float32)
    values[5, 5, 3], values[6, 6, 3] = 1e9, -1e9
    write_new(tmp_path / "hot.nii", values, AFFINE)
    hot = [Subject("hot", "", "hot", {"t1": tmp_path / "hot.nii"}, {}, None, None)]
    settings = replace(SETTINGS, modalities=("t1",))
    stores, _ = made(tmp_path / "s", {"train": hot}, settings)
    slices = stores["train"].subject_slices("hot")
    largest = np.finfo(np.float16).max
    assert (slices.min(), slices.max()) == (-largest, largest)


@pytest.mark.slow
def test_processes_make_the_same_files_and_report_each_subject(tmp_path, raw):
    _, reports = made(tmp_path / "s", in_two(raw))
    _, others = made(tmp_path / "t", in_two(raw), processes=2)
    assert content(tmp_path / "s") == content(tmp_path / "t")
    assert reports == others == [(1, 3), (2, 3), (3, 3)]


# What is made again


def test_nothing_is_made_twice(tmp_path, raw, read):
    stores, _ = made(tmp_path / "s", in_two(raw))
    files = [p for p in (tmp_path / "s").iterdir() if p.name != "lock"]
    times = {path: path.stat().st_mtime_ns for path in files}
    again, reports = made(tmp_path / "s", in_two(raw))
    assert again == stores and reports == []
    assert sorted(read) == ["a", "b", "c"]
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_each_array_is_checked_once(tmp_path, raw, monkeypatch):
    made(tmp_path / "s", in_two(raw))
    checked = []

    def check(store):
        checked.append(store.path)
        return damaged_entries(store)

    monkeypatch.setattr(module, "damaged_entries", check)
    made(tmp_path / "s", in_two(raw))
    assert len(checked) == len(set(checked)) == 2


def test_subjects_that_change_their_split_are_copied(tmp_path, raw, read):
    a, b, c = look(raw)
    before = slices_of(made(tmp_path / "s", {"train": [a, b], "test": [c]})[0])
    for splits in (
        {"train": [b, a], "test": [c]},
        {"train": [c], "test": [a, b]},
        {"train": [a, b, c]},
        {"val": [b], "train": [c], "test": [a]},
    ):
        stores, reports = made(tmp_path / "s", splits)
        made(tmp_path / "fresh", splits)
        assert reports == [] and slices_of(stores) == before
        assert content(tmp_path / "s") == content(tmp_path / "fresh")
        shutil.rmtree(tmp_path / "fresh")
        read[3:] = []
    assert sorted(read) == ["a", "b", "c"]


def test_only_added_subjects_are_made_and_others_are_taken_away(tmp_path, raw, read):
    a, b, c = look(raw)
    for some, count in (([a, b], 2), ([a, b, c], 3), ([b, c], 3), ([c], 3)):
        stores, reports = made(tmp_path / "s", {"train": some})
        assert [e.name for e in stores["train"].subjects] == [s.name for s in some]
        assert open_store(tmp_path / "s", "train") == stores["train"]
        assert len(read) == count and len(content(tmp_path / "s")) == 2
        assert not reports or reports == [(k, len(some)) for k, _ in reports]
        assert not reports or reports[-1] == (len(some), len(some))
    assert sorted(read) == ["a", "b", "c"]


def test_the_folder_of_the_data_may_move_and_dates_may_change(tmp_path, raw, read):
    before = slices_of(made(tmp_path / "s", in_two(raw))[0])
    moved = shutil.copytree(
        raw, tmp_path / "elsewhere", copy_function=shutil.copyfile
    )  # of other dates
    shutil.rmtree(raw)
    again, reports = made(tmp_path / "s", in_two(moved))
    assert reports == [] and len(read) == 3
    assert slices_of(again) == before


def test_a_touched_file_is_read_once_for_its_new_date(tmp_path, raw, monkeypatch):
    made(tmp_path / "s", in_two(raw))
    path = look(raw)[0].files["t1"]
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    hashed = []
    digest = sha256_of_file
    monkeypatch.setattr(
        "ummcsgm.data.store.sha256_of_file", lambda p: hashed.append(p) or digest(p)
    )
    for _ in range(2):
        assert made(tmp_path / "s", in_two(raw))[1] == []
        assert hashed == [path]


def test_another_content_is_made_anew_also_of_the_same_size(tmp_path, raw, read):
    made(tmp_path / "s", in_two(raw))
    path = look(raw)[2].files["t1"]
    write_new(path, volume(99), AFFINE)
    stores, reports = made(tmp_path / "s", in_two(raw))
    assert read[3:] == ["c"] and reports == [(3, 3)]
    assert stores["train"].scales("t1")["c"] == fit_scale(volume(99))

    whole = path.read_bytes()
    date = path.stat().st_mtime_ns + 1000
    write_new(path, volume(99) * np.float32(-1), AFFINE)
    path.write_bytes(whole[:4] + b"\1" + whole[5:])  # a byte of gzip's own date
    os.utime(path, ns=(date, date))
    stores, _ = made(tmp_path / "s", in_two(raw))
    assert read[3:] == ["c", "c"]
    assert stores["train"].subjects[0].sources["t1:"].sha256 == sha256_of_file(path)


def test_another_position_in_space_alone_is_a_change(tmp_path, raw):
    before = slices_of(made(tmp_path / "s", {"test": look(raw)[1:2]})[0])
    shifted = AFFINE.copy()
    shifted[0, 3] = 5
    for number, modality in enumerate(("t1", "flair")):
        path = look(raw)[1].files[modality]
        write_new(path, volume(20 + number) * (number + 1), shifted)
    after, _ = made(tmp_path / "s", {"test": look(raw)[1:2]})
    assert after["test"].subjects[0].affine[0][3] == 5
    assert slices_of(after) == before
    assert open_store(tmp_path / "s", "test") == after["test"]


def test_a_modality_that_appears_later_makes_its_subject_anew(tmp_path, raw, read):
    made(tmp_path / "s", in_two(raw))
    write_subject(raw, "b", ("t2",), 5)
    stores, _ = made(tmp_path / "s", in_two(raw))
    assert read[3:] == ["b"] and stores["test"].subjects[0].present == (True,) * 3


def test_a_group_or_a_patient_that_is_named_otherwise_is_reported(tmp_path, raw):
    a = look(raw)[0]
    for changed in (a, replace(a, group="HGG"), replace(a, patient="p")):
        stores, reports = made(tmp_path / "s", {"train": [changed]})
        entry = stores["train"].subjects[0]
        assert (entry.group, entry.patient) == (changed.group, changed.patient)
        assert reports == [(1, 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"view": SliceView((8, 12), 0.0, masked=False, neighbours=0)},
        {"view": SliceView((16, 8), 0.0, masked=False, neighbours=0)},
        {"view": SliceView((8, 16), 0.9, masked=False, neighbours=0)},
        {"min_brain": 0.2},
        {"modalities": ("t2", "t1", "flair")},
    ],
)
def test_other_settings_make_all_anew(tmp_path, raw, read, change):
    made(tmp_path / "s", in_two(raw))
    settings = replace(SETTINGS, **change)
    stores, reports = made(tmp_path / "s", in_two(raw), settings)
    assert sorted(read[3:]) == ["a", "b", "c"] and reports[-1] == (3, 3)
    assert read_index(tmp_path / "s")[0] == settings
    assert stores["train"].read(np.array([0]))[0].shape[1:] == settings.slice_shape
    made(tmp_path / "fresh", in_two(raw), settings)
    assert content(tmp_path / "s") == content(tmp_path / "fresh")


def test_another_format_makes_all_anew(tmp_path, raw, read, monkeypatch):
    made(tmp_path / "s", in_two(raw))
    for name in ("build_store", "store"):
        monkeypatch.setattr(f"ummcsgm.data.{name}.FORMAT", 99)
    _, reports = made(tmp_path / "s", in_two(raw))
    assert reports[-1] == (3, 3) and len(read) == 6
    assert len(content(tmp_path / "s")) == 3


def test_a_mask_decides_what_is_brain_and_its_change_makes_anew(tmp_path, raw, read):
    settings = replace(SETTINGS, view=replace(SETTINGS.view, masked=True))
    with pytest.raises(InputError, match="subject a has no brain mask"):
        made(tmp_path / "s", {"train": look(raw, "mask")}, settings)
    mask = (volume(1) != 0).astype(np.uint8)
    mask[:, :4] = 0
    for name in "abc":
        write_new(raw / name / f"{name}-mask.nii.gz", mask, AFFINE)
    stores, _ = made(tmp_path / "s", {"train": look(raw, "mask")}, settings)
    for subject, entry in zip(look(raw), stores["train"].subjects, strict=True):
        prepared = prepare_subject(subject, MODALITIES, SETTINGS.view)
        whole = network_slices(prepared, MODALITIES, np.array(entry.slices))
        masked = stores["train"].subject_slices(entry.name)
        parts = [np.count_nonzero(images[..., 0]) for images in (masked, whole)]
        assert parts[0] == parts[1] * 4 // 6  # of y 2..7 there are left 4..7

    del read[:]
    mask[:, 4] = 0
    write_new(raw / "b/b-mask.nii.gz", mask, AFFINE)
    stores, _ = made(tmp_path / "s", {"train": look(raw, "mask")}, settings)
    assert set(read) == {"b"}
    assert np.count_nonzero(stores["train"].subject_slices("b")[..., 0]) == 3 * 5 * 4


def test_a_mask_that_is_not_asked_for_changes_nothing(tmp_path, raw, read):
    made(tmp_path / "s", in_two(raw))
    write_new(raw / "b/b-mask.nii.gz", (volume(1) != 0).astype(np.uint8), AFFINE)
    b = look(raw, "mask")[1]
    assert b.mask is not None
    made(tmp_path / "s", {**in_two(raw), "test": [b]})
    assert len(read) == 3


# What is damaged


@pytest.mark.parametrize("offset", [0, 9, 60, 127, 128, 5000, 12415, 12416, 20000, -1])
def test_a_damaged_array_makes_that_subject_again(tmp_path, raw, read, offset):
    stores, _ = made(tmp_path / "s", {"train": look(raw)})
    before, path = content(tmp_path / "s"), stores["train"].path
    damaged = bytearray(path.read_bytes())
    assert len(damaged) == 128 + 3 * 4 * 768
    damaged[offset % len(damaged)] ^= 16
    path.write_bytes(damaged)
    _, reports = made(tmp_path / "s", {"train": look(raw)})
    slices = max(offset % len(damaged) - 128, 0)
    assert read[3:] == ["abc"[slices // (4 * 768)]] and reports == [(3, 3)]
    assert content(tmp_path / "s") == before


@pytest.mark.parametrize("length", [0, 100, 128, 5000, -1])
def test_an_array_cut_short_makes_again_what_was_cut(tmp_path, raw, read, length):
    stores, _ = made(tmp_path / "s", {"train": look(raw)})
    before, path = content(tmp_path / "s"), stores["train"].path
    path.write_bytes(path.read_bytes()[:length])
    made(tmp_path / "s", {"train": look(raw)})
    again = {-1: ["c"], 5000: ["b", "c"]}.get(length, ["a", "b", "c"])
    assert read[3:] == again and content(tmp_path / "s") == before


def test_a_lost_array_makes_its_subjects_again(tmp_path, raw, read):
    stores, _ = made(tmp_path / "s", in_two(raw))
    before = content(tmp_path / "s")
    stores["train"].path.unlink()
    made(tmp_path / "s", in_two(raw))
    assert read[3:] == ["c", "a"] and content(tmp_path / "s") == before


@pytest.mark.parametrize("text", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"format":3}'])
def test_without_a_whole_index_all_is_made_again(tmp_path, raw, read, text):
    made(tmp_path / "s", in_two(raw))
    before = content(tmp_path / "s")
    (tmp_path / "s/index.json").unlink()
    if text is not None:
        (tmp_path / "s/index.json").write_bytes(text)
    made(tmp_path / "s", in_two(raw))
    assert len(read) == 6 and content(tmp_path / "s") == before


def stop_after(folder, splits, count):
    """A run that prepares `splits` in `folder` fails when `count` subjects are made."""

    class StopError(Exception):
        pass

    def report(done, total):
        if done == count:
            raise StopError

    with pytest.raises(StopError):
        module.build_stores(folder, splits, SETTINGS, processes=1, report=report)


def test_a_stopped_run_is_continued(tmp_path, raw, read):
    made(tmp_path / "fresh", in_two(raw))
    del read[:]
    stop_after(tmp_path / "s", in_two(raw), 2)
    assert read == ["c", "a"] and read_index(tmp_path / "s") is None
    _, reports = made(tmp_path / "s", in_two(raw))
    assert read == ["c", "a", "b"] and reports == [(3, 3)]
    assert content(tmp_path / "s") == content(tmp_path / "fresh")


def test_a_stopped_run_with_other_settings_leaves_the_former_slices(tmp_path, raw):
    stores, _ = made(tmp_path / "s", in_two(raw))
    settings = replace(SETTINGS, view=SliceView((4, 4), 0.0, masked=False, neighbours=0))
    with pytest.raises(InputError, match="does not fit"):
        made(tmp_path / "s", in_two(raw), settings)
    assert open_store(tmp_path / "s", "train") == stores["train"]


@pytest.mark.parametrize("suffix", [".slices", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_part_is_made_again(tmp_path, raw, read, suffix, damage):
    made(tmp_path / "fresh", in_two(raw))
    del read[:]
    stop_after(tmp_path / "s", in_two(raw), 2)
    (record,) = [
        path
        for path in (tmp_path / "s/parts").glob("*.json")
        if b'"name": "a"' in path.read_bytes()
    ]
    path = record.with_suffix(suffix)
    whole = bytearray(path.read_bytes())
    flip = whole.copy()
    flip[len(flip) // 2] ^= 4
    forms = {"flip": flip, "cut": whole[:-1], "empty": b""}
    path.unlink() if damage == "gone" else path.write_bytes(forms[damage])
    made(tmp_path / "s", in_two(raw))
    assert sorted(read[2:]) == ["a", "b"]
    assert content(tmp_path / "s") == content(tmp_path / "fresh")


def test_a_part_of_files_that_have_changed_since_is_made_again(tmp_path, raw, read, monkeypatch):
    stop_after(tmp_path / "s", in_two(raw), 2)
    write_new(look(raw)[0].files["t1"], volume(99), AFFINE)
    stores, _ = made(tmp_path / "s", in_two(raw))
    assert sorted(read) == ["a", "a", "b", "c"]
    assert stores["train"].scales("t1")["a"] == fit_scale(volume(99))


def test_what_was_being_written_when_a_run_was_killed_is_removed(tmp_path, raw):
    made(tmp_path / "s", in_two(raw))
    before = content(tmp_path / "s")
    for name in (".train-0.npy.ab", ".index.json.cd", "parts/.x.npy.ef", "old-1.npy"):
        (tmp_path / "s" / name).write_bytes(b"half")
    (tmp_path / "s/notes.txt").write_text("the user's own")
    made(tmp_path / "s", in_two(raw))
    assert content(tmp_path / "s") == before | {"notes.txt": b"the user's own"}


# What cannot be made


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_file_is_named_also_by_another_process(tmp_path, raw, processes):
    path = look(raw)[1].files["flair"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b-flair\.nii\.gz: the file is damaged"):
        made(tmp_path / "s", in_two(raw), processes=processes)
    assert read_index(tmp_path / "s") is None


def test_a_file_that_is_gone_is_named(tmp_path, raw):
    splits = in_two(raw)
    path = splits["train"][0].files["t1"]
    whole = path.read_bytes()
    for _ in range(2):  # without a store, and with one
        path.unlink()
        with pytest.raises(InputError, match=r"c-t1\.nii\.gz: there is no such file"):
            made(tmp_path / "s", splits)
        path.write_bytes(whole)
        made(tmp_path / "s", splits)


def test_a_volume_without_a_scale_is_named(tmp_path, raw):
    write_new(look(raw)[0].files["t2"], -np.abs(volume(1)), AFFINE)
    with pytest.raises(InputError, match=r"a-t2\.nii\.gz: every voxel"):
        made(tmp_path / "s", in_two(raw))


def test_a_brain_larger_than_the_grid_and_no_file_at_all_name_the_subject(tmp_path, raw):
    settings = replace(SETTINGS, view=SliceView((5, 5), 0.0, masked=False, neighbours=0))
    with pytest.raises(InputError, match="subject a: the brain is 6 x 5"):
        made(tmp_path / "s", {"train": look(raw)}, settings)
    with pytest.raises(InputError, match="subject z has none of"):
        bare = Subject("z", "", "z", {}, {}, None, None)
        made(tmp_path / "s", {"train": [bare]})


def test_a_write_that_fails_leaves_no_part_of_a_file(tmp_path, raw, monkeypatch):
    def fail(path, content):
        with atomic_writer(path) as file:
            file.write(bytes(content)[:99])
            raise OSError("the disk is full")

    monkeypatch.setattr(module, "write_atomic", fail)
    with pytest.raises(OSError, match="full"):
        made(tmp_path / "s", in_two(raw))
    assert content(tmp_path / "s") == {}


def end_this_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_one_sentence():
    with pytest.raises(InputError, match="config.data.processes"):
        list(pool.map_in_processes(end_this_process, [1, 2], 2))


# Kills at any moment


class Killed(BaseException):
    """As a kill: no code after it touches a file."""


def dying(monkeypatch, limit):
    """Files are renamed and removed `limit` times, then never; how often it was.

    When it comes to that, the rename is not done, and of its file the half is lost.
    """
    count = collections.Counter()
    rename, unlink = os.replace, os.unlink

    def pass_or_die():
        if count["points"] >= limit:
            raise Killed
        count["points"] += 1

    def replace_(source, target):
        if count["points"] == limit and pathlib.Path(source).exists():
            os.truncate(source, os.path.getsize(source) // 2)
        pass_or_die()
        rename(source, target)

    def unlink_(path, **options):
        if pathlib.Path(path).exists():
            pass_or_die()
        unlink(path, **options)

    monkeypatch.setattr(os, "replace", replace_)
    monkeypatch.setattr(os, "unlink", unlink_)
    return count


def check_trusted(folder, allowed):
    """What is trusted in `folder` is one of the whole stores of `allowed`."""
    known = read_index(folder)
    if known is None:
        return None
    opened = {split: open_store(folder, split) for split in known[1]}
    same = [stores for stores in allowed if places_of(stores) == places_of(opened)]
    assert same, "neither the former slices nor the new ones"
    for store in opened.values():
        mapped = np.load(store.path, mmap_mode="r")
        assert mapped.tobytes() == store.read(np.arange(len(store)))[0].tobytes()
    return same[0]


def changed(folder):
    """What is prepared at first, and after a change of everything."""
    a, b, c = look(folder)
    coarse = replace(SETTINGS, view=SliceView((8, 16), 1.25, masked=False, neighbours=0))
    return {
        "fresh": (None, ({"train": [c, a], "test": [b]}, SETTINGS)),
        "moved": (
            ({"train": [a, b], "test": [c]}, SETTINGS),
            ({"train": [c, a], "test": [b]}, SETTINGS),
        ),
        "added": (({"train": [a]}, SETTINGS), ({"train": [a, b, c]}, SETTINGS)),
        "settings": (
            ({"train": [a, b], "test": [c]}, SETTINGS),
            ({"train": [a, b], "test": [c]}, coarse),
        ),
    }


@pytest.mark.parametrize("case", ["fresh", "moved", "added", "settings"])
@pytest.mark.slow
def test_a_kill_at_any_moment_is_as_if_it_had_not_been(tmp_path, three, case):
    before, after = changed(three)[case]
    expected, _ = made(tmp_path / "whole", *after)
    former = made(tmp_path / "former", *before)[0] if before else None
    (tmp_path / "former").mkdir(exist_ok=True)
    allowed = [stores for stores in (former, expected) if stores]
    seen = []
    for limit in range(1000):
        folder = shutil.copytree(tmp_path / "former", tmp_path / str(limit))
        with pytest.MonkeyPatch.context() as patch:
            count = dying(patch, limit)
            try:
                made(folder, *after)
                finished = True
            except Killed:
                finished = False
        seen.append(check_trusted(folder, allowed))
        _, reports = made(folder, *after)
        if case == "fresh":  # two renames a subject: what was finished is kept
            assert len(reports) == max(3 - limit // 2, 0)
        assert content(folder) == content(tmp_path / "whole"), limit
        shutil.rmtree(folder)
        if finished:
            break
    assert count["points"] == limit and limit >= 3
    order = [None if not stores else allowed.index(stores) for stores in seen]
    first = None if former is None else 0
    change = order.index(len(allowed) - 1)
    assert order == [first] * change + [len(allowed) - 1] * (len(order) - change)


def test_no_file_is_written_under_its_final_name(tmp_path, three, monkeypatch):
    """Renaming is what a kill cannot halve."""
    written, opened = [], io.open

    def note(path, mode="r", *rest):
        if "r" not in mode or "+" in mode:
            written.append(pathlib.Path(path).name)
        return opened(path, mode, *rest)

    monkeypatch.setattr(io, "open", note)
    made(tmp_path / "s", in_two(three))
    assert len(written) == 9  # two a subject, one a split, the index
    assert all(name.startswith(".") for name in written)


@pytest.mark.slow
def test_two_kills_and_then_other_settings_leave_nothing_behind(tmp_path, three):
    before, after = changed(three)["settings"]
    made(tmp_path / "whole", *after)
    for limits in ((1, 2), (3, 3), (6, 1), (9, 4), (11, 12)):
        folder = tmp_path / "s"
        for limit, wanted in zip(limits, (before, after), strict=True):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                dying(patch, limit)
                made(folder, *wanted)
        made(folder, *after)
        assert content(folder) == content(tmp_path / "whole")
        shutil.rmtree(folder)


SCRIPT = """
import sys
from tiny_slices import look, made
if __name__ == "__main__":
    a, b, c = look(sys.argv[1])
    print("begins", flush=True)
    made(sys.argv[2], {"train": [c, a], "test": [b]}, processes=int(sys.argv[3]))
"""


def start(script, raw, folder, processes):
    """A new process, in a new session, that prepares `raw`."""
    tests = pathlib.Path(__file__).parents[1]
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(raw), str(folder), str(processes)],
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(session):
    """The processes of `session` that still run; None if the system does not say."""
    if not pathlib.Path("/proc/self/stat").is_file():
        return None
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def check_all_end(session):
    """No process of `session` goes on once its first one has ended."""
    deadline = time.monotonic() + 30
    while alive(session):
        assert time.monotonic() < deadline, "a worker outlived the one that began it"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_processes_leave_no_process_and_no_half_slices(tmp_path, three):
    expected, _ = made(tmp_path / "whole", in_two(three))
    waits = random.Random(0)
    for attempt in range(4):
        process = start(tmp_path / "run.py", three, tmp_path / "s", 2)
        process.stdout.readline()
        time.sleep(waits.uniform(0, 0.5) * (attempt + 1))
        process.kill()
        process.wait()
        check_all_end(process.pid)
        process.communicate()
        check_trusted(tmp_path / "s", [expected])
    made(tmp_path / "s", in_two(three))
    assert content(tmp_path / "s") == content(tmp_path / "whole")


@pytest.mark.slow
def test_who_works_in_a_folder_is_waited_for(tmp_path, three):
    folder = tmp_path / "s"
    folder.mkdir()
    arguments = (folder, in_two(three))
    waiting = threading.Thread(target=made, args=arguments)
    with filelock.FileLock(folder / "lock"):
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and content(folder) == {}
    waiting.join()
    assert len(content(folder)) == 3


@pytest.mark.slow
def test_two_processes_may_prepare_one_folder_at_once(tmp_path, three):
    made(tmp_path / "whole", in_two(three))
    both = [start(tmp_path / "run.py", three, tmp_path / "s", n) for n in (1, 2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert content(tmp_path / "s") == content(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_what_was_done_is_kept(tmp_path, three):
    process = start(tmp_path / "run.py", three, tmp_path / "s", 2)
    process.stdout.readline()
    while process.poll() is None and not any((tmp_path / "s").glob("parts/*.json")):
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):  # it may have been too quick
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    check_all_end(process.pid)
    made(tmp_path / "s", in_two(three))
    made(tmp_path / "whole", in_two(three))
    assert content(tmp_path / "s") == content(tmp_path / "whole")
