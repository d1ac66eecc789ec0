"""The probability of a tumour over draws: its mean, its reliability and its files."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_slices import AFFINE, MODALITIES, SETTINGS, SHAPE, look, write_three

from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA
from ummcsgm.data.nifti import is_synthetic, read_volume, write_new
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.inference.outputs import RESEARCH, sidecar
from ummcsgm.study.downstream import patient_of
from ummcsgm.study.tumour_maps import (
    BINS,
    examine_maps,
    judge,
    map_summary,
    probability_map,
    write_maps,
)
from ummcsgm.training.segmenter_step import regions


def segment(images):
    """Probabilities of CLASSES that are no linear function of the images."""
    first, second = images[..., 0], images[..., 1]
    logits = np.stack([1 + 0 * first, first * second, second, first - second], -1)
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


@pytest.fixture
def draws():
    return np.random.default_rng(0).normal(size=(3, 2, 4, 5, 3))


@pytest.fixture
def subject(tmp_path):
    """Its tumour is oedema about a core that enhances on one side."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 3:7, 3:5] = OEDEMA
    labels[4:6, 4:6, 3:5] = CORE
    labels[4:5, 4:6, 3:5] = ENHANCING
    write_three(tmp_path)
    write_new(tmp_path / "a" / "a-seg.nii.gz", labels, AFFINE)
    return look(tmp_path)[0]


@pytest.fixture
def both(subject):
    prepared = prepare_subject(subject, MODALITIES, SETTINGS.view)
    return prepared, patient_of(subject, prepared, MODALITIES)


def test_draws_that_are_all_alike_give_the_one_segmentation(draws):
    same = np.repeat(draws[:1], 4, axis=0)
    found = probability_map(segment, same)
    np.testing.assert_allclose(found, regions(segment(draws[0])), rtol=1e-12)


def test_different_draws_give_the_mean_of_their_segmentations(draws):
    """Not the segmentation of their mean."""
    one, other, _ = (regions(segment(images)) for images in draws)
    found = probability_map(segment, iter(draws[:2]))
    np.testing.assert_allclose(found, (one + other) / 2, rtol=1e-12)
    of_mean = regions(segment(draws[:2].mean(axis=0)))
    assert np.abs(found - of_mean).max() > 0.02


def test_a_map_is_judged_as_by_hand():
    """Four voxels, one of them off the brain: the whole tumour is two of them."""
    labels = np.array([[[OEDEMA, OEDEMA, 0, 0]]])
    brain = np.array([[[True, True, True, False]]])
    maps = np.zeros((1, 1, 4, 3))
    maps[0, 0, :, 0] = [0.95, 0.25, 0.28, 0.4]
    wt, tc, _ = judge(maps, labels, brain)
    assert wt["dice"] == 2 / 3 and wt["predicted"] == 1
    squares = 0.05**2, 0.75**2, 0.28**2
    assert wt["brier"] == pytest.approx(sum(squares) / 3)
    assert wt["bins"]["voxels"] == [0, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    said, true = np.zeros(BINS), np.zeros(BINS)
    said[[2, 9]], true[[2, 9]] = [0.53, 0.95], [1, 1]
    np.testing.assert_allclose(wt["bins"]["said"], said, rtol=1e-12)
    assert wt["bins"]["true"] == true.tolist()
    assert tc["dice"] is None and tc["brier"] == 0.0
    assert tc["bins"]["voxels"] == [3, *[0] * 9]
    json.dumps([wt, tc])


def test_what_is_certain_lies_in_the_last_bin():
    labels, brain = np.full((1, 1, 1), CORE), np.ones((1, 1, 1), bool)
    for record in judge(np.ones((1, 1, 1, 3)), labels, brain):
        assert record["bins"]["voxels"] == [*[0] * 9, 1]


def record(dice, brier, voxels, said, true):
    bins = {"voxels": voxels, "said": said, "true": true}
    bins = {name: [*values, *[0] * (BINS - 2)] for name, values in bins.items()}
    facts = {"map": "draws", "modality": "t1", "region": "WT"}
    return facts | {"dice": dice, "brier": brier, "bins": bins}


def test_reliability_is_that_of_all_subjects_voxels():
    """In the second bin 4 voxels said 0.15 and 1 was: |0.6 - 1| of 14 voxels."""
    rows = map_summary(
        [
            record(0.5, 0.1, [10, 1], [0.3, 0.15], [0, 1]),
            record(None, 0.3, [0, 3], [0, 0.45], [0, 0]),
        ]
    )
    assert rows == [
        {
            "map": "draws",
            "modality": "t1",
            "region": "WT",
            "dice": 0.5,
            "brier": pytest.approx(0.2),
            "calibration": pytest.approx((0.3 + 0.4) / 14),
            "subjects": 2,
            "skipped": 1,
            "table": [
                {
                    "low": 0.0,
                    "high": 0.1,
                    "voxels": 10,
                    "probability": pytest.approx(0.03),
                    "frequency": 0.0,
                },
                {
                    "low": 0.1,
                    "high": 0.2,
                    "voxels": 4,
                    "probability": pytest.approx(0.15),
                    "frequency": 0.25,
                },
            ],
        }
    ]


def test_draws_mean_and_truth_are_judged_alike(both):
    """Of the draws only the missing modality is read; draws of the truth are it."""
    _, patient = both
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(3, *patient.images.shape))
    draws[..., 1] = patient.images[..., 1]
    mean = patient.images.copy()
    mean[..., 1] = 0
    records, maps = examine_maps(segment, patient, 1, draws, mean)
    told = {(r["map"], r["region"]): r for r in records}
    assert len(told) == len(records) == 9
    for region in ("WT", "TC", "ET"):
        one, other = told["draws", region], told["truth", region]
        assert one["brier"] == pytest.approx(other["brier"], rel=1e-6)
        assert one["modality"] == MODALITIES[1] and one["subject"] == patient.name
        assert told["mean", region]["brier"] != pytest.approx(one["brier"], rel=1e-3)
    np.testing.assert_allclose(maps, regions(segment(patient.images)), rtol=1e-6)


def test_maps_lie_on_the_scanner_s_grid(both, subject, tmp_path):
    """A map that is the labels is the segmentation's own file, in the slices asked."""
    prepared, patient = both
    some = patient.at(np.array([3]))
    maps = np.stack(
        [some.labels > 0, np.isin(some.labels, (CORE, ENHANCING)), some.labels == ENHANCING],
        axis=-1,
    )
    about = {"missing": "t1", "draws": 8, "sampler": "warm"}
    paths = write_maps(tmp_path / "maps", prepared, some, 0.75 * maps, about)
    names = [f"a_without-t1_{name}-probability.nii.gz" for name in ("WT", "TC", "ET")]
    assert [path.name for path in paths] == names
    truth, _ = read_volume(subject.segmentation)
    of_region = truth > 0, np.isin(truth, (CORE, ENHANCING)), truth == ENHANCING
    for path, true in zip(paths, of_region, strict=True):
        volume, geometry = read_volume(path)
        assert np.array_equal(geometry.affine, prepared.case.geometry.affine)
        expected = np.zeros(volume.shape)
        expected[3] = 0.75 * true[3]
        assert expected.any()
        np.testing.assert_allclose(volume, expected, atol=1e-3)
        assert is_synthetic(path)
        told = json.loads(sidecar(path).read_text())
        assert about.items() <= told.items()
        assert (told["note"], told["slices"]) == (RESEARCH, [3])
        assert told["region"] == path.name.split("_")[2].split("-")[0]


def test_off_the_brain_there_is_no_tumour(both, tmp_path):
    prepared, patient = both
    patient = dataclasses.replace(patient, labels=patient.labels * 0)
    maps = np.ones((*patient.labels.shape, 3))
    path, *_ = write_maps(tmp_path, prepared, patient, maps, {"missing": "t2"})
    volume, _ = read_volume(path)
    np.testing.assert_allclose(volume, prepared.brain, atol=1e-3)
