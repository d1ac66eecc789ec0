"""A classifier that tells draws from truths: what it has to find, and what it must not."""

import csv
import json

import jax
import numpy as np
import pytest
import two_sample_checks as checks
from fake_network import FakeNetwork, split_of
from tiny_run import tiny_config
from two_sample_checks import DISC, auc_of, fields, pairs_of

from ummcsgm.config import build
from ummcsgm.config.build import check_config
from ummcsgm.evaluation import two_sample
from ummcsgm.evaluation.two_sample import (
    LEAST_SUBJECTS,
    PATCH,
    classify,
    compare_draws,
    compare_modalities,
    make_pairs,
    patch_positions,
    surest,
)
from ummcsgm.reporting.evaluation_report import write_evaluation
from ummcsgm.types import InputError

pytest_plugins = ["fake_network"]
PNG = b"\x89PNG\r\n\x1a\n"


def options(**changes):
    """Those of a config; `changes` are of its section evaluate."""
    return build.build_evaluation_options(
        tiny_config("", **{f"evaluate__{key}": value for key, value in changes.items()})
    )


def test_a_shift_is_found_as_far_as_it_can_be():
    checks.assert_shift_is_found_as_far_as_it_can_be(16, 60, 0.1)


def test_draws_of_the_same_law_are_not_found():
    checks.assert_same_law_is_not_found()


def test_white_noise_of_the_right_variance_is_found():
    checks.assert_white_noise_is_found()


def test_the_area_is_that_of_mann_and_whitney():
    checks.assert_auc_is_that_of_mann_and_whitney()


def test_patches_are_half_brain_and_a_stride_apart():
    found = {tuple(position) for position in patch_positions(np.stack([DISC, ~DISC]), 4)}
    for z, brain in enumerate((DISC, ~DISC)):
        for y in range(0, brain.shape[0] - PATCH + 1):
            for x in range(0, brain.shape[1] - PATCH + 1):
                enough = brain[y : y + PATCH, x : x + PATCH].sum() >= PATCH**2 / 2
                assert ((z, y, x) in found) == (enough and y % 4 == x % 4 == 0)
    assert patch_positions(np.ones((2, PATCH - 1, 40), bool), 4).shape == (0, 3)


def test_every_patch_is_scored_once_drawn_and_once_real():
    pairs = pairs_of(2.0, 2.0, 16)
    scores = classify(pairs, 2, [0])
    expected = patch_positions(pairs.brain, two_sample.SCORING_STRIDE).tolist()
    for label in (True, False):
        assert sorted(scores.patches[scores.drawn == label].tolist()) == sorted(expected)
    np.testing.assert_array_equal(scores.subject, pairs.subject[scores.patches[:, 0]])
    folds = [set(scores.fold[scores.subject == subject]) for subject in range(16)]
    assert all(len(fold) == 1 for fold in folds) and set.union(*folds) == {0, 1}


def test_labels_of_the_control_are_those_of_whole_subjects_and_half_of_each_fold():
    pairs = pairs_of(2.0, 0, 16)
    scores = classify(pairs, 2, [0], control=True)
    members = np.unique(scores.subject)
    labels = [np.unique(scores.drawn[scores.subject == s]) for s in members]
    assert set(scores.fold) == {0} and len(members) == 8
    assert all(len(label) == 1 for label in labels) and np.sum(labels) == 4
    # No draw is read: other draws, the same scores.
    again = classify(pairs._replace(draw=pairs.truth), 2, [0], control=True)
    np.testing.assert_array_equal(scores.logit, again.logit)


def test_the_address_decides():
    pairs = pairs_of(2.0, 0, 16)
    first, again, other = (compare_draws(pairs, 3, [0, seed])[0] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
def test_the_device_does_not_matter():
    pairs = pairs_of(2.0, 0, 16)
    with jax.default_device(jax.devices()[1]):
        there = compare_draws(pairs, 3, [0, 1])[0]
    assert there == compare_draws(pairs, 3, [0, 1])[0]


def kept_of(subjects, scanned=(True, True), seed=0):
    """What an evaluation keeps of subjects with two modalities, the second seen to be drawn."""
    rng, kept = np.random.default_rng(seed), []
    for _ in range(subjects):
        truth, draw = (np.stack([fields(rng, s, 2) for s in (2.0, 2.0)], -1) for _ in range(2))
        images = {"truth": truth, "draw": draw, "mean": 0 * truth}
        images = {k: v.astype(np.float16) for k, v in images.items()}
        brain = np.broadcast_to(DISC, (2, *DISC.shape))
        scans = {"drawn": np.array(scanned), "grey": np.array([100.0, 10.0])}
        kept.append(images | {"brain": brain} | scans)
    return kept


def test_a_modality_of_few_subjects_is_skipped_and_says_so():
    kept = kept_of(LEAST_SUBJECTS) + kept_of(3, (False, True), seed=1)
    kept[0]["brain"] = np.zeros_like(kept[0]["brain"])
    rows, pictures = compare_modalities(kept, ["t1", "t2"], options(two_sample_steps=2))
    first, second = rows
    assert first["auc"] is None and first["control_high"] is None and first["patches"] == 0
    assert "subjects with draws of t1 and" in first["skipped"] and ": 3;" in first["skipped"]
    assert first["subjects"] == 3 and second["subjects"] == 6
    assert second["skipped"] is None and 0 <= second["auc"] <= 1
    assert second["low"] <= second["auc"] <= second["high"] and second["patches"] > 0
    assert set(pictures) == {"t2"} and pictures["t2"]["drawn"].shape == (6, PATCH, PATCH)
    assert compare_modalities([], ["t1"], options()) == ([], {})


def test_a_brain_between_the_scored_positions_is_not_counted():
    """A patch of 16 x 16 is half brain at some position, and at none of those that are scored."""
    kept = kept_of(LEAST_SUBJECTS + 1)
    small = np.zeros_like(kept[0]["brain"])
    small[:, 4:20, 4:20] = (np.add.outer(*[(np.arange(16) - 7.5) ** 2] * 2) < 44)[None]
    assert len(patch_positions(small, 1)) and not len(
        patch_positions(small, two_sample.SCORING_STRIDE)
    )
    kept[0]["brain"] = small
    rows, _ = compare_modalities(kept, ["t1", "t2"], options(two_sample_steps=2))
    assert [row["subjects"] for row in rows] == [LEAST_SUBJECTS] * 2
    assert all(row["skipped"] is None for row in rows)


def test_the_surest_patches_are_those_of_the_highest_scores():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 40, 40))
    whole = np.ones((4, 40, 40), bool)
    pairs = make_pairs(*images, whole[..., None], whole, np.array([0, 0, 1, 2]))
    patches = np.array([[0, 1, 2], [1, 3, 4], [2, 5, 6], [3, 7, 8]] * 2)
    drawn = np.repeat([True, False], 4)
    logit = np.array([1.0, 2, 5, 3, 4, 3, 2, 1])
    subject = pairs.subject[patches[:, 0]]
    found = surest(pairs, two_sample.Scores(patches, drawn, logit, subject, 0 * subject))
    for name, image, order in (("drawn", pairs.draw, (2, 3, 1)), ("real", pairs.truth, (3, 2, 1))):
        chosen = [(z, slice(y, y + PATCH), slice(x, x + PATCH)) for z, y, x in patches[[*order]]]
        np.testing.assert_array_equal(found[name], [image[at] for at in chosen])
        residual = image - pairs.mean
        np.testing.assert_array_equal(found[f"{name}_residual"], [residual[at] for at in chosen])


def blurred(sampler, images, missing, addresses, rho=0.0):
    """A mean of half the brightness, and draws that are the mean."""
    return np.where(missing[:, None, None], images / 2, images)


@pytest.mark.parametrize("steps", [0, 2])
def test_an_evaluation_writes_what_was_tested(world, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(two_sample, "LEAST_SUBJECTS", 2)
    network = FakeNetwork(
        world,
        blurred,
        evaluate__two_sample_steps=steps,
        evaluate__draw_subjects=0,
        evaluate__draws=2,
    )
    result = network.evaluate(tmp_path, split=split_of(world))
    write_evaluation(result, tmp_path / "out")
    page = (tmp_path / "out" / "calibration.md").read_text()
    rows, file = result["facts"]["two_sample"], tmp_path / "out" / "two_sample.csv"
    of_validation = json.loads((tmp_path / "run" / "calibration.json").read_text())["two_sample"]
    assert [row["modality"] for row in of_validation] == [row["modality"] for row in rows]
    assert all(": 1; wanted" in row["skipped"] for row in of_validation)
    assert ("told from truths" in page) == file.exists() == bool(steps) == bool(rows)
    if not steps:
        return
    with file.open() as lines:
        written = list(csv.DictReader(lines))
    assert [row["modality"] for row in written] == list(network.space.modalities)
    for line, row in zip(written, rows, strict=True):
        assert line["auc"] == str(row["auc"]) and row["subjects"] == 2
    assert (tmp_path / "out" / "two_sample.png").read_bytes().startswith(PNG)
    for images in result["two_sample"].values():
        residuals = images["drawn_residual"], images["real_residual"]
        assert not residuals[0].any() and np.all(residuals[1] >= 0) and residuals[1].any()
        assert images["real"].max() > 200  # grey levels


def test_a_wrong_number_of_steps_is_named():
    with pytest.raises(InputError, match="config.evaluate.two_sample_steps is -1"):
        check_config(tiny_config("", evaluate__two_sample_steps=-1), 1)


@pytest.mark.slow
def test_the_control_does_not_know_subjects():
    checks.assert_control_does_not_know_subjects()


@pytest.mark.slow
def test_a_correlation_length_off_by_a_fifth_is_found_and_by_a_tenth_just():
    """The detection limit with 40 subjects of 2 slices; the best AUCs are 0.98 and 0.86."""
    fifth, _ = auc_of(pairs_of(2.0, 2.4, 40), 120, 0)
    assert 0.62 < fifth < 0.98
    tenth, error = auc_of(pairs_of(2.0, 2.2, 40), 120, 0)
    assert 0.5 + 2 * error < tenth < 0.7


@pytest.mark.slow
def test_a_spread_too_small_by_a_tenth_is_found():
    pairs = pairs_of(2.0, 2.0, 40)
    narrow = pairs.mean + 0.9 * (pairs.draw - pairs.mean)
    assert auc_of(pairs._replace(draw=narrow), 120, 0)[0] > 0.75


@pytest.mark.slow
def test_a_shift_is_found_nearly_as_well_as_by_the_best_test():
    checks.assert_shift_is_found_as_far_as_it_can_be(40, 120, 0.05)
