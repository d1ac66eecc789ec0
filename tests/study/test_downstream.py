"""What a replaced modality is worth: Dice by hand, and a segmenter that is trained."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from tiny_run import AFFINE, MODALITIES, SHAPE, brain, tiny_config, write_subjects

from ummcsgm.config import preparation
from ummcsgm.config.build import build_space
from ummcsgm.config.courses import SEGMENTER, build_trainable, method_config, method_folder
from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA
from ummcsgm.data.nifti import write_new
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.study.downstream import (
    Patient,
    examine,
    keep,
    load_segmenter,
    overlaps,
    patient_of,
    summary,
)
from ummcsgm.study.train_methods import train_method
from ummcsgm.training import checkpoint
from ummcsgm.training.dsm_step import TrainState
from ummcsgm.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

LABELS = np.array([[[CORE, OEDEMA, ENHANCING, 0]]])
STEPS = 6


def patient(present=(True, True, True), **changes) -> Patient:
    """Two slices of 1 x 4 pixels, the last of which is off the brain."""
    fields = {
        "name": "P1",
        "group": "HGG",
        "modalities": ("a", "b", "c"),
        "present": np.array(present),
        "z": np.array([3, 5]),
        "images": np.ones((2, 1, 4, 3), np.float32) * np.array(present),
        "brain": np.tile([True, True, True, False], (2, 1, 1)),
        "labels": np.repeat(LABELS, 2, axis=0),
    }
    return Patient(**fields | changes)


def enhancing_where_b(images):
    """Probabilities of CLASSES: what enhances is as probable as b is bright."""
    b = images[..., 1]
    return np.stack([1 - b, 0 * b, 0 * b, b], axis=-1)


def test_dice_is_the_one_that_is_counted_by_hand():
    found = np.array([[[[0.9, 0.9, 0.9], [0.4, 0, 0], [0.6, 0.6, 0.6], [0.6, 0, 0]]]])
    wt, tc, et = overlaps(found, LABELS)
    assert wt == {"region": "WT", "dice": 4 / 6, "voxels": 3, "predicted": 3}
    assert tc == {"region": "TC", "dice": 1.0, "voxels": 2, "predicted": 2}
    assert et == {"region": "ET", "dice": 2 / 3, "voxels": 1, "predicted": 2}


def test_a_region_that_is_not_there_has_no_dice_but_is_counted():
    labels = np.where(LABELS == ENHANCING, OEDEMA, LABELS)
    et = overlaps(np.full((1, 1, 4, 3), 0.7), labels)[2]
    assert et == {"region": "ET", "dice": None, "voxels": 0, "predicted": 4}
    nothing = overlaps(np.zeros((1, 1, 4, 3)), LABELS)[2]
    assert nothing == {"region": "ET", "dice": 0.0, "voxels": 1, "predicted": 0}


def test_only_the_missing_modality_is_replaced():
    """The segmentation reads b alone: nothing else that a method says can matter."""
    own = patient()
    shown = []

    def segment(images):
        shown.append(images)
        return enhancing_where_b(images)

    def fill(channel):
        return np.full((2, 1, 4, 3), 0.2 + channel)

    records = examine(segment, own, "method", fill)
    assert [(r["modality"], r["region"]) for r in records] == [
        *itertools.product("abc", ("WT", "TC", "ET"))
    ]
    for channel, images in enumerate(shown):
        others = np.delete(images, channel, axis=-1)
        assert np.array_equal(others, np.delete(own.images, channel, axis=-1))
        expected = np.where(own.brain, 0.2 + channel, 0).astype(np.float32)
        assert np.array_equal(images[..., channel], expected)
    assert {r["predicted"] for r in records if r["modality"] == "b"} == {6}
    facts = {"subject": "P1", "group": "HGG", "method": "method"}
    assert all(facts.items() <= record.items() for record in records)


def test_zeros_and_truth_are_answers_too():
    """b is bright in the brain, whose three pixels a slice are all tumour."""
    own = patient()
    own.images[..., 1] = own.brain
    told = {
        name: examine(enhancing_where_b, own, name, fill) for name, fill in own.references().items()
    }
    wt = {
        (name, r["modality"]): r["dice"]
        for name, records in told.items()
        for r in records
        if r["region"] == "WT"
    }
    assert wt == dict.fromkeys(wt, 1.0) | {("zeros", "b"): 0.0}
    assert len(wt) == 6


def test_what_a_method_does_not_answer_has_no_record():
    def fill(channel):
        if channel == 0:
            return None
        answer = np.full((2, 1, 4, 3), np.nan)
        if channel == 2:
            answer[..., 2] = 0.5
        return answer

    told = examine(enhancing_where_b, patient(), "some", fill)
    assert {record["modality"] for record in told} == {"c"}


def test_a_modality_that_was_never_scanned_is_not_asked():
    assert patient((True, False, True)).asked() == [0, 2]
    assert patient((True, False, False)).asked() == []


def test_some_of_the_slices():
    own = patient(labels=np.stack([LABELS[0], 0 * LABELS[0]]))
    some = own.at(np.array([5, 9]))
    assert some.z.tolist() == [5] and not some.labels.any()
    assert some.images.shape == (1, 1, 4, 3) and some.brain.shape == (1, 1, 4)


def record(method, dice, predicted=10, modality="t1", region="ET"):
    facts = {"method": method, "modality": modality, "region": region}
    return facts | {"dice": dice, "predicted": predicted, "voxels": 1}


def test_the_summary_skips_and_counts_who_lacks_a_region():
    records = [record("m", 0.5), record("m", None, 4), record("m", 0.9)]
    records += [record("m", None, 7), record("n", None, 2), record("o", 0.25)]
    rows = {row["method"]: row for row in summary(records)}
    assert rows["m"] == {
        "method": "m",
        "modality": "t1",
        "region": "ET",
        "dice": pytest.approx(0.7),
        "sd": pytest.approx(0.4 / np.sqrt(2)),
        "subjects": 2,
        "skipped": 2,
        "false_voxels": 5.5,
    }
    numbers = ("dice", "sd", "subjects", "skipped", "false_voxels")
    assert [rows["n"][name] for name in numbers] == [None, None, 0, 1, 2.0]
    assert [rows["o"][name] for name in numbers] == [0.25, None, 1, 0, None]


def test_methods_do_not_depend_on_one_another():
    rng = np.random.default_rng(0)
    records = [
        record(method, float(rng.uniform()), modality=modality)
        for method in "abc"
        for modality in ("t1", "t2")
        for _ in range(3)
    ]
    rows = summary(records)
    backwards = summary([r for m in "cab" for r in records if r["method"] == m])
    assert sorted(map(str, rows)) == sorted(map(str, backwards))
    assert summary([r for r in records if r["method"] == "b"]) == [
        row for row in rows if row["method"] == "b"
    ]


def tumour() -> np.ndarray:
    """Oedema with a core, in slices 2 to 4, one of whose voxels enhances."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:10, 6:12, 2:5] = OEDEMA
    labels[6:9, 7:11, 2:5] = CORE
    labels[7, 8, 2:5] = ENHANCING
    assert brain()[labels > 0].all()
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Subjects of whom P5 alone has no segmentation, and a config of the segmenter."""
    folder = write_subjects(tmp_path_factory.mktemp("subjects"))
    for name in ("P1", "P2", "P3", "P4"):
        group = "HGG" if int(name[1:]) % 2 else "LGG"
        write_new(folder / group / name / f"{name}_seg.nii.gz", tumour(), AFFINE)
    changes = {"data__labels": True, "study__segmenter_steps": STEPS, "train__save_every": 3}
    return tiny_config(folder, **changes)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A workdir in which the segmenter was trained in one go."""
    workdir = tmp_path_factory.mktemp("run")
    train_method(data, workdir, method=SEGMENTER)
    return workdir


def state_of(data, workdir) -> tuple:
    """The checkpoint's newest (state, ema)."""
    course = build_trainable(data, SEGMENTER)
    shapes: TrainState = jax.eval_shape(course.start, jax.random.key(0))
    place = method_folder(workdir, SEGMENTER)
    return checkpoint.restore(place, shapes.replace(ema=None), shapes.ema)


def test_a_resumed_training_is_the_straight_one_bitwise(data, trained, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(trained, workdir)
    place = method_folder(workdir, SEGMENTER)
    shutil.rmtree(place / "checkpoints" / str(STEPS))
    assert checkpoint.latest_step(place) == 3
    early = state_of(data, workdir)
    train_method(data, workdir, method=SEGMENTER)
    assert checkpoint.latest_step(place) == STEPS
    straight, resumed = state_of(data, trained), state_of(data, workdir)
    moved = []
    for a, b, c in zip(*map(jax.tree.leaves, (straight, resumed, early)), strict=True):
        np.testing.assert_array_equal(a, b)
        moved.append(np.any(a != c))
    assert sum(moved) > len(moved) / 2


def test_its_config_is_the_study_s_with_steps_of_its_own(data, trained):
    saved = checkpoint.restore_metadata(method_folder(trained, SEGMENTER))
    assert saved["method"] == SEGMENTER
    assert saved["config"]["train"]["steps"] == STEPS
    assert saved["config"]["train"]["batch"] == data.train.batch
    none = data.copy_and_resolve_references()
    none.study.downstream = 0
    with pytest.raises(InputError, match="config.study.segmenter_steps is 0"):
        method_config(none, SEGMENTER)


def test_the_trained_network_answers_rows_by_themselves(data, trained):
    """However many are asked at once, and with the averaged parameters."""
    segment = load_segmenter(trained, data)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(11, 16, 16, len(MODALITIES))).astype(np.float32)
    whole = segment(images)
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    parts = [segment(images[:3]), segment(images[3:]), segment(images[:0])]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert np.ptp(whole[:, 8, 8, 0]) > 0
    other = load_segmenter(trained, data)
    assert other.digest == segment.digest and len(segment.digest) == 64


def test_a_patient_is_all_slices_with_brain(data, trained):
    cohort, _ = preparation.prepare(data, trained)
    view = build_space(data).view
    own = cohort.subjects["P1"]
    prepared = prepare_subject(own, MODALITIES, view)
    one = patient_of(own, prepared, MODALITIES)
    assert one.z.tolist() == [1, 2, 3, 4, 5]
    counts = [[(s == label).sum() for label in (1, 2, 4)] for s in one.labels]
    assert counts == [[0, 0, 0], *[[11, 18, 1]] * 3, [0, 0, 0]]
    assert (one.images[one.brain] > 0).all() and not one.images[~one.brain].any()
    assert one.present.all() and one.group == "HGG"
    without = cohort.subjects["P5"]
    prepared = prepare_subject(without, MODALITIES, view)
    assert patient_of(without, prepared, MODALITIES) is None


def test_records_are_kept_until_what_they_depend_on_changes(data, trained, tmp_path):
    cohort, _ = preparation.prepare(data, trained)
    subject = cohort.subjects["P1"]
    asked = []

    def ask():
        asked.append(1)
        return [{"dice": 0.25 * len(asked), "region": "WT"}]

    path = tmp_path / "P1.npz"
    assert keep(path, ["a"], subject, ask) == [{"dice": 0.25, "region": "WT"}]
    assert keep(path, ["a"], subject, ask) == [{"dice": 0.25, "region": "WT"}]
    assert keep(path, ["b"], subject, ask)[0]["dice"] == 0.5
    moved = shutil.copy(subject.segmentation, tmp_path / "seg.nii.gz")
    other = dataclasses.replace(subject, segmentation=tmp_path / moved)
    assert keep(path, ["b"], other, ask)[0]["dice"] == 0.75
