"""The segmentation goes with the slices, in one code, on the same pixels."""

import dataclasses
import pathlib

import numpy as np
import pytest
from tiny_slices import AFFINE, MODALITIES, SETTINGS, SHAPE, look, made, volume, write_three

from ummcsgm.data.labels import UNKNOWN, region
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.known import brats, brats23
from ummcsgm.data.loader import make_batches
from ummcsgm.data.nifti import write_new
from ummcsgm.data.subjects import network_labels, network_slices, prepare_subject, read_labels
from ummcsgm.evaluation.score_subject import read_truth
from ummcsgm.types import InputError

LABELLED = dataclasses.replace(SETTINGS, labels=True)


def tumour(values=(1, 2, 4)) -> np.ndarray:
    """Oedema about a core that enhances on one side, within the brain."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 3:7, 3:5] = values[1]
    labels[4:6, 4:6, 3:5] = values[0]
    labels[4:5, 4:6, 3:5] = values[2]
    return labels


@pytest.fixture
def folder(tmp_path):
    """Subjects a, b and c; a alone has a segmentation."""
    write_three(tmp_path)
    write_new(tmp_path / "a" / "a-seg.nii.gz", tumour(), AFFINE)
    return tmp_path


def prepared(subject):
    return prepare_subject(subject, MODALITIES, SETTINGS.view)


def test_labels_lie_on_the_pixels_of_the_images(folder):
    """A modality that is a function of the labels stays one, slice by slice."""
    brain = volume(0) != 0
    painted = np.where(brain, np.where(tumour() > 0, 100.0 + tumour(), 50.0), 0)
    painted = painted.astype(np.float32)
    write_new(folder / "a" / "a-t1.nii.gz", painted, AFFINE)
    subject = look(folder)[0]
    subject_data = prepared(subject)
    z = np.arange(2, 6)
    labels = network_labels(subject_data, read_labels(subject, subject_data), z)
    t1 = network_slices(subject_data, MODALITIES, z)[..., 0] * subject_data.scales["t1"]
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    for value in (1, 2, 4):
        np.testing.assert_array_equal(labels == value, np.isclose(t1, 100 + value))
    assert (labels == 4).sum() == 4 and (labels > 0).sum() == 32


def test_a_batch_has_the_labels_of_its_slices_mirrored_with_them(folder):
    stores, _ = made(folder / "prepared", {"train": look(folder)}, LABELLED)
    store = stores["train"]
    entry, bare = store.subjects[0], store.subjects[1]
    subject = look(folder)[0]
    subject_data = prepared(subject)
    wanted = network_labels(
        subject_data, read_labels(subject, subject_data), np.array(entry.slices)
    )
    batch = make_batches(store, batch=len(store), seed=0, flip=False, process=0, processes=1).at(0)
    assert batch.images.shape[-1] == len(MODALITIES)
    label_of = {image.tobytes(): label for image, label in zip(*_rows(batch), strict=True)}
    slices = store.read(store.slice_indices("a"))[0][..., :-1]
    for image, label in zip(slices, wanted, strict=True):
        np.testing.assert_array_equal(label_of[np.ascontiguousarray(image).tobytes()], label)
    stored = store.read(store.slice_indices(bare.name))[0]
    assert (stored[..., -1] == UNKNOWN).all()
    both = make_batches(store, batch=len(store), seed=0, flip=True, process=0, processes=1).at(0)
    pairs = zip(*_rows(batch), strict=True)
    mirrored = {np.ascontiguousarray(image[:, ::-1]).tobytes(): label for image, label in pairs}
    seen = 0
    for image, label in zip(*_rows(both), strict=True):
        if image.tobytes() not in label_of:
            turned = mirrored[image.tobytes()][:, ::-1]
            np.testing.assert_array_equal(label, turned)
            seen += 1
    assert seen > 0
    np.testing.assert_array_equal(
        store.subject_slices("a"), slices[..., : len(MODALITIES)].astype(np.float32)
    )


def _rows(batch):
    return [np.ascontiguousarray(image) for image in batch.images], list(batch.labels)


def test_without_labels_a_batch_has_none(folder):
    stores, _ = made(folder / "prepared", {"train": look(folder)})
    batches = make_batches(stores["train"], batch=2, seed=0, flip=True, process=0, processes=1)
    assert batches.at(0).labels is None


def test_a_changed_segmentation_is_read_again(folder):
    made(folder / "prepared", {"train": look(folder)}, LABELLED)
    grown = np.where(tumour() == 2, 4, tumour()).astype(np.uint8)
    write_new(folder / "a" / "a-seg.nii.gz", grown, AFFINE)
    stores, _ = made(folder / "prepared", {"train": look(folder)}, LABELLED)
    store = stores["train"]
    labels = store.read(store.slice_indices("a"))[0][..., -1]
    assert set(np.unique(labels)) == {0, 1, 4}


@pytest.mark.parametrize("make, values", [(brats, (1, 2, 4)), (brats23, (1, 2, 3))])
def test_each_layouts_values_become_one_code(tmp_path, make, values):
    layout = make(("t1", "t2"), "")
    for name in ("t1", "t2"):
        image = volume(3)
        write_new(_path(layout, tmp_path, name), image, AFFINE)
    write_new(_path(layout, tmp_path, "seg"), tumour(values), AFFINE)
    (subject,) = find_subjects(tmp_path, [layout]).subjects
    subject_data = prepare_subject(subject, ("t1", "t2"), SETTINGS.view)
    # what is read is turned to RAS: the sizes of the parts tell them apart
    labels = read_labels(subject, subject_data)
    sizes = {value: int((labels == value).sum()) for value in (1, 2, 4)}
    assert sizes == {1: 4, 2: 24, 4: 4}
    assert [int(region(labels, r).sum()) for r in ("WT", "TC", "ET")] == [32, 8, 4]


def test_where_a_tumour_was_resected_is_none(tmp_path):
    layout = brats23(("t1", "t2"), "")
    for name in ("t1", "t2"):
        write_new(_path(layout, tmp_path, name), volume(3), AFFINE)
    values = tumour((1, 2, 3))
    values[np.unravel_index(np.flatnonzero(values == 0)[:5], values.shape)] = 4
    write_new(_path(layout, tmp_path, "seg"), values, AFFINE)
    (subject,) = find_subjects(tmp_path, [layout]).subjects
    labels = read_labels(subject, prepare_subject(subject, ("t1", "t2"), SETTINGS.view))
    assert region(labels, "WT").sum() == 32 and region(labels, "ET").sum() == 4
    *_, scored = read_truth(subject, False)
    assert scored.sum() == 32


def _path(layout, folder, word) -> pathlib.Path:
    joint = "_" if layout.name == "brats" else "-"
    token = layout.suffixes.get(word, word)
    return folder / "S-00001-000" / f"S-00001-000{joint}{token}.nii.gz"


def test_a_subject_without_a_tumour_has_labels_all_the_same(folder):
    write_new(folder / "a" / "a-seg.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    subject = look(folder)[0]
    assert (read_labels(subject, prepared(subject)) == 0).all()


def test_a_segmentation_of_another_code_is_refused(folder):
    write_new(folder / "a" / "a-seg.nii.gz", tumour((1, 2, 7)), AFFINE)
    subject = look(folder)[0]
    with pytest.raises(InputError, match="a-seg.nii.gz holds the value 7"):
        read_labels(subject, prepared(subject))


def test_a_segmentation_on_another_grid_is_refused(folder):
    write_new(folder / "a" / "a-seg.nii.gz", tumour()[:-1], AFFINE)
    subject = look(folder)[0]
    with pytest.raises(InputError, match="a-seg.nii.gz"):
        read_labels(subject, prepared(subject))
