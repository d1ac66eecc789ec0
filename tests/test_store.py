"""Prepared slices are the images, and are made once."""

import json
import os
import pickle

import numpy as np
import pytest

from ummcsgm.data import store as module
from ummcsgm.data import subjects as subjects_module
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.layouts import Subject, find_subjects, flat
from ummcsgm.data.nifti import read_volume, write_new
from ummcsgm.data.store import prepare, read_store
from ummcsgm.data.window import paste
from ummcsgm.types import InputError

MODALITIES = ("t1", "t2", "flair")
SHAPE = (9, 11, 7)  # X, Y, Z on disk
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])  # left-handed: x is turned on reading
SETTINGS = {"grid": (8, 16), "min_brain": 0.1, "processes": 1}


def volume(seed):
    """A brain of 5 x 6 voxels and negative values in it; its lowest slices small."""
    values = np.random.default_rng(seed).normal(400, 250, SHAPE).astype(np.float32)
    brain = np.zeros(SHAPE, bool)
    brain[3:8, 2:8, 2:6] = True
    brain[4:6, 4:6, 0:2] = True
    return np.where(brain, values, 0)


def write_subject(folder, name, modalities, seed):
    for number, modality in enumerate(modalities):
        path = folder / name / f"{name}-{modality}.nii.gz"
        write_new(path, volume(10 * seed + number) * (number + 1), AFFINE)


@pytest.fixture
def subjects(tmp_path):
    write_subject(tmp_path / "raw", "a", MODALITIES, 1)
    write_subject(tmp_path / "raw", "b", ("t1", "flair"), 2)
    write_subject(tmp_path / "raw", "c", MODALITIES, 3)
    return look(tmp_path)


def look(tmp_path):
    layout = flat(MODALITIES, "{subject}/{subject}-{modality}.nii.gz")
    return find_subjects(tmp_path / "raw", layout)


@pytest.fixture
def made(monkeypatch):
    """The names of the subjects that are read, in turn."""
    names = []

    def read_and_note(files):
        names.append(next(iter(files.values())).parent.name)
        return read_case(files)

    read_case = subjects_module.read_case
    monkeypatch.setattr(subjects_module, "read_case", read_and_note)
    return names


def test_what_is_read_back_is_the_volume_on_its_slices(tmp_path, subjects):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    for subject, entry in zip(subjects, store.subjects, strict=True):
        assert entry.slices == (2, 3, 4, 5)  # 30 / 128 of the grid; the lowest 4 / 128
        slices = store.subject_slices(entry.name)
        for channel, modality in enumerate(MODALITIES):
            if modality not in subject.files:
                assert (slices[..., channel] == 0).all()
                continue
            original, _ = read_volume(subject.files[modality])
            assert entry.scales[modality] == fit_scale(original)
            again = paste(entry.window, slices[..., channel]) * entry.scales[modality]
            np.testing.assert_allclose(again, original[2:6], rtol=1e-3, atol=1e-3)
            assert np.array_equal(again == 0, original[2:6] == 0)


def test_slices_are_counted_through_the_subjects(tmp_path, subjects):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert len(store) == 12
    for i in range(len(store)):
        images, present, subject = store.read(i)
        name = "abc"[i // 4]
        assert images.dtype == np.float32 and images.shape == (8, 16, 3)
        assert np.array_equal(images, store.subject_slices(name)[i % 4])
        assert subject == i // 4
        assert present.tolist() == [True, name != "b", True]
    for i in (-1, 12):
        with pytest.raises(IndexError, match=str(i)):
            store.read(i)


def test_a_slice_is_kept_when_its_brain_is_above_the_least_part(tmp_path, subjects):
    for least, slices in ((0.0, 6), (3.9 / 128, 6), (4 / 128, 4), (29.9 / 128, 4)):
        settings = {**SETTINGS, "min_brain": least}
        store = prepare(tmp_path / "s", subjects[:1], MODALITIES, **settings)
        assert len(store) == slices
    with pytest.raises(InputError, match=r"subject a: .*0\.234.*config.data.min_brain"):
        settings = {**SETTINGS, "min_brain": 30 / 128}
        prepare(tmp_path / "s", subjects, MODALITIES, **settings)


def test_the_channels_follow_the_modalities(tmp_path, subjects):
    one = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    other = prepare(tmp_path / "t", subjects, MODALITIES[::-1], **SETTINGS)
    turned = other.subject_slices("c")[..., ::-1]
    assert np.array_equal(one.subject_slices("c"), turned)
    assert not np.array_equal(one.subject_slices("c"), other.subject_slices("c"))


def test_a_selection_holds_its_subjects_slices_and_scales(tmp_path, subjects):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    part = store.select(["c", "b"])
    assert [entry.name for entry in part.subjects] == ["b", "c"] and len(part) == 8
    assert np.array_equal(part.read(4)[0], store.read(8)[0])
    assert part.read(4)[2] == 1
    assert set(part.scales("t1")) == {"b", "c"} and set(part.scales("t2")) == {"c"}
    expected = fit_scale(read_volume(subjects[2].files["t2"])[0])
    assert part.scales("t2")["c"] == expected
    assert len(store.select([])) == 0


def test_a_store_is_opened_again_and_travels_between_processes(tmp_path, subjects):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert read_store(tmp_path / "s") == store
    assert pickle.loads(pickle.dumps(store)).read(7)[0].tobytes() == (
        store.read(7)[0].tobytes()
    )
    with pytest.raises(InputError, match="index.json is missing"):
        read_store(tmp_path / "raw")


def test_nothing_is_made_twice(tmp_path, subjects, made):
    first = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert made == ["a", "b", "c"] and len(times) == 7
    assert prepare(tmp_path / "s", look(tmp_path), MODALITIES, **SETTINGS) == first
    assert made == ["a", "b", "c"]
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "s").iterdir()}


def test_a_subject_finished_before_a_kill_is_kept(tmp_path, subjects, made):
    prepare(tmp_path / "s", subjects[:2], MODALITIES, **SETTINGS)
    (tmp_path / "s/index.json").unlink()
    (tmp_path / "s/.c.npy.0123").write_bytes(b"half")
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert made == ["a", "b", "c"] and len(store) == 12
    assert read_store(tmp_path / "s") == store


def test_a_changed_file_a_lost_array_and_a_short_one_are_made_anew(
    tmp_path, subjects, made
):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    whole = store.subject_slices("a")
    with (tmp_path / "s/a.npy").open("r+b") as file:
        file.truncate(500)
    (tmp_path / "s/b.npy").unlink()
    write_new(subjects[2].files["t1"], volume(99), AFFINE)
    again = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert made == ["a", "b", "c"] * 2
    assert np.array_equal(again.subject_slices("a"), whole)
    assert again.scales("t1")["c"] == fit_scale(volume(99))


def test_a_file_of_the_same_size_but_another_time_is_read_again(
    tmp_path, subjects, made
):
    prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    path = subjects[1].files["t1"]
    later = path.stat().st_mtime_ns + 1000
    os.utime(path, ns=(later, later))
    prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert made == ["a", "b", "c", "b"]


def test_the_index_follows_when_subjects_are_added_and_taken_away(
    tmp_path, subjects, made
):
    for some in (subjects[:2], subjects, subjects[1:]):
        store = prepare(tmp_path / "s", some, MODALITIES, **SETTINGS)
        assert read_store(tmp_path / "s") == store
    assert made == ["a", "b", "c"] and len(store) == 8


@pytest.mark.parametrize(
    "change", [{"grid": (8, 12)}, {"min_brain": 0.2}, {"grid": (16, 8)}]
)
def test_other_settings_make_all_anew(tmp_path, subjects, made, change):
    prepare(tmp_path / "s", subjects[:1], MODALITIES, **SETTINGS)
    settings = {**SETTINGS, **change}
    store = prepare(tmp_path / "s", subjects[:1], MODALITIES, **settings)
    assert made == ["a", "a"] and store.read(0)[0].shape[:2] == settings["grid"]


def test_a_modality_that_appears_later_makes_its_subject_anew(tmp_path, subjects, made):
    prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    write_subject(tmp_path / "raw", "b", ("t2",), 5)
    store = prepare(tmp_path / "s", look(tmp_path), MODALITIES, **SETTINGS)
    assert made == ["a", "b", "c", "b"]
    assert store.subjects[1].present == (True, True, True)


def test_processes_make_the_same_files(tmp_path, subjects):
    one = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    settings = {**SETTINGS, "processes": 2}
    two = prepare(tmp_path / "t", subjects, MODALITIES, **settings)
    assert one.subjects == two.subjects
    for path in (tmp_path / "s").iterdir():
        assert path.read_bytes() == (tmp_path / "t" / path.name).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_file_is_named_also_by_another_process(tmp_path, subjects, processes):
    path = subjects[1].files["flair"]
    path.write_bytes(path.read_bytes()[:-9])
    settings = {**SETTINGS, "processes": processes}
    with pytest.raises(InputError, match=r"b-flair\.nii\.gz: the file is damaged"):
        prepare(tmp_path / "s", subjects, MODALITIES, **settings)
    assert not (tmp_path / "s/index.json").exists()


def test_a_volume_without_a_scale_is_named(tmp_path, subjects):
    write_new(subjects[0].files["t2"], -np.abs(volume(1)), AFFINE)
    with pytest.raises(InputError, match=r"a-t2\.nii\.gz: every voxel"):
        prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)


def test_a_brain_larger_than_the_grid_and_no_file_at_all_name_the_subject(
    tmp_path, subjects
):
    with pytest.raises(InputError, match="subject a: the brain is 6 x 5"):
        prepare(tmp_path / "s", subjects, MODALITIES, **{**SETTINGS, "grid": (5, 5)})
    with pytest.raises(InputError, match="subject z has none of"):
        bare = [Subject("z", "", {}, None)]
        prepare(tmp_path / "s", bare, MODALITIES, **SETTINGS)


def test_a_write_that_fails_leaves_no_part_of_a_file(tmp_path, subjects, monkeypatch):
    def fail(file, images):
        file.write(b"half of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(module.np, "save", fail)
    with pytest.raises(OSError, match="full"):
        prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    assert list((tmp_path / "s").iterdir()) == []


def test_an_intensity_beyond_float16_stays_finite(tmp_path, subjects):
    values = np.random.default_rng(0).uniform(1, 2, (8, 8, 7)).astype(np.float32)
    values[5, 5, 3], values[6, 6, 3] = 1e9, -1e9
    write_new(tmp_path / "hot.nii", values, AFFINE)
    hot = [Subject("hot", "", {"t1": tmp_path / "hot.nii"}, None)]
    slices = prepare(tmp_path / "s", hot, ["t1"], **SETTINGS).subject_slices("hot")
    largest = np.finfo(np.float16).max
    assert (slices.min(), slices.max()) == (-largest, largest)


def test_reading_holds_no_file_open(tmp_path, subjects):
    store = prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    before = len(os.listdir("/dev/fd"))
    for i in range(len(store)):
        store.read(i)
    assert len(os.listdir("/dev/fd")) == before


def test_the_record_of_a_subject_is_plain_json(tmp_path, subjects):
    prepare(tmp_path / "s", subjects, MODALITIES, **SETTINGS)
    record = json.loads((tmp_path / "s/b.subject.json").read_text())
    assert record["name"] == "b" and record["slices"] == [2, 3, 4, 5]
    assert record["scales"]["t2"] is None and record["present"] == [True, False, True]
    # x: the brain's 5 voxels are 1..5 after the turn, 5 cells before them and 6 after
    assert record["window"] == {"grid": [8, 16], "origin": [1, -4], "frame": [11, 9]}
