"""Lesions that enhance by a known coin: right draws pass, the mean plus noise does not."""

import csv
import json
import shutil

import lesion_checks as checks
import numpy as np
import pytest
from fake_network import FakeNetwork, split_of
from lesion_checks import (
    BRAIN,
    CORE,
    COUNT,
    GRID,
    LABELS,
    MODALITIES,
    PROBABILITY,
    T1C,
    enhanced,
    plain,
    posterior_mean,
    record_of,
    records_of,
    right_law,
    row_of,
    white_noise,
)
from tiny_run import AFFINE, SHAPE, brain, path_of

from ummcsgm.data.nifti import write_new
from ummcsgm.data.phantom.make import streams
from ummcsgm.data.phantom.truth import draw_truth, truth_path, write_truth
from ummcsgm.data.subjects import network_slices, prepare_subject
from ummcsgm.evaluation.lesions import (
    INCOMPLETE,
    MIN_VOXELS,
    NO_LESION,
    NO_SEGMENTATION,
    lesion_results,
    lesion_rows,
    skipped_line,
)
from ummcsgm.reporting.evaluation_report import write_evaluation
from ummcsgm.types import InputError

pytest_plugins = ["fake_network"]


def test_draws_by_the_truths_own_coin_pass():
    checks.assert_right_law_passes()


def test_the_mean_plus_white_noise_of_the_same_variance_fails():
    """Its voxels have the right mean and variance; its lesions never change."""
    results = lesion_results(records_of(white_noise))
    for measure in ("mean", "p90", "enhancement"):
        row = row_of(results, measure)
        assert row["spread_ratio_high"] < 0.25, measure
        assert row["spread_skill_high"] < 0.3
        # A truth beyond all 8 draws counts 0.55. Noise adds to a percentile: by chance that of a
        # draw's enhancement comes near a lesion that does enhance.
        assert measure == "enhancement" or row["coverage_high"] < 0.65
    right = lesion_results(records_of(right_law))
    assert row_of(results, "mean")["crps"] > 1.5 * row_of(right, "mean")["crps"]
    found = results["enhancement"]
    assert found["share_of_draws"] == 1.0 and found["share_of_truths"] < 0.85
    assert found["brier"] > right["enhancement"]["brier_high"]
    (only,) = found["reliability"]
    assert (only["low"], only["probability"]) == (0.8, 1.0)
    assert only["frequency_high"] < 0.85


def test_draws_that_never_enhance_fail_too():
    def never(rng, t1):
        return BRAIN * (t1 + 0.01 * rng.normal(size=(COUNT, *GRID)))

    found = lesion_results(records_of(never))["enhancement"]
    assert found["share_of_draws"] == 0 and found["share_ratio_high"] == 0
    (only,) = found["reliability"]
    assert only["probability"] == 0 and only["frequency_low"] > 0.6
    assert found["brier"] == pytest.approx(found["share_of_truths"])


def test_a_mean_half_way_enhances_each_time_and_never_brightly():
    """The share that enhances alone would nearly pass."""

    def about_the_mean(rng, t1):
        return BRAIN * (t1 + 0.3 * CORE + 0.01 * rng.normal(size=(COUNT, *GRID)))

    found = lesion_results(records_of(about_the_mean))["enhancement"]
    assert found["share_ratio"] == pytest.approx(1 / PROBABILITY, rel=0.1)
    assert found["share_of_draws"] == 1 and found["bright"]["share_of_draws"] == 0
    assert found["bright"]["share_of_truths_low"] > 0.6


def test_the_measures_of_a_lesion_by_hand():
    checks.assert_measures_by_hand()


def test_enhancement_by_hand():
    checks.assert_enhancement_by_hand()


def test_the_known_law_is_compared_with_the_draws(tmp_path):
    """`pattern` and `probability` are read beside the scans; a coin of 0.5 is not 0.75."""
    rng, found = np.random.default_rng(0), []
    index = {True: None, False: None}
    for number in range(40):
        index[draw_truth(streams(0, number)).enhances] = number
    for number in range(60):
        t1, (draw,) = plain(rng), rng.uniform(size=1)
        built = draw < PROBABILITY
        folder = tmp_path / f"P{number}"
        write_truth(truth_path(folder), draw_truth(streams(0, index[bool(built)])))
        truth = BRAIN * (t1 + checks.GAIN * built * CORE)
        coins = rng.uniform(size=(COUNT, 1, 1)) < 0.5
        drawn = BRAIN * (t1 + checks.GAIN * coins * CORE)
        record = record_of(
            number, truth, t1, posterior_mean(t1), drawn, folder=folder / "scan.nii.gz"
        )
        found.append(record)
    known = lesion_results(found)["enhancement"]["known"]
    assert known["probability"] == pytest.approx(0.75) and known["agreement"] == 1
    assert known["mean"] == pytest.approx(0.5, abs=0.08)
    assert known["sd"] == pytest.approx(np.sqrt(0.25 / COUNT), rel=0.25)
    assert known["sd_of_right"] == pytest.approx(np.sqrt(0.1875 / COUNT))
    share = known["share_built"]
    assert known["brier"] == pytest.approx(share * 0.25**2 + (1 - share) * 0.75**2)
    assert sum(row["lesions"] for row in known["patterns"].values()) == 60
    assert known["patterns"]["none"]["enhance"] == 0
    truth_path(tmp_path / "P0").write_text("{")
    folder = tmp_path / "P0" / "scan.nii.gz"
    damaged = record_of(0, truth, t1, truth, drawn, folder=folder)
    assert damaged["lesions"] == [] and "P0_phantom.json" in damaged["lesions_skipped"]


def test_of_patients_there_is_no_known_law():
    results = lesion_results(records_of(right_law, subjects=3))
    assert results["enhancement"]["known"] is None


def test_the_core_is_of_t1c_and_the_whole_tumour_of_other_scans():
    rng = np.random.default_rng(0)
    t1 = plain(rng)
    for channel, voxels in ((T1C, CORE.sum()), (0, (LABELS > 0).sum()), (1, (LABELS > 0).sum())):
        record = record_of(0, t1, t1, t1, enhanced(rng, t1, 2), channel=channel)
        (lesion,) = record["lesions"]
        assert lesion["voxels"] == voxels and lesion["z"] == 7
        assert ("enhancement" in lesion["truth"]) == (channel == T1C)


def test_without_t1_nothing_is_said_of_enhancement():
    rng = np.random.default_rng(0)
    t1 = plain(rng)
    scans = tuple(m for m in MODALITIES if m != "t1")
    record = record_of(0, t1, t1, t1, enhanced(rng, t1, 2), scanned=scans)
    results = lesion_results([record])
    assert {row["measure"] for row in results["rows"]} == {"mean", "p90"}
    assert results["enhancement"] is None


def test_lesions_are_the_large_components_inside_the_brain():
    checks.assert_sections_by_hand()
    assert MIN_VOXELS == 10


def test_subjects_without_a_score_are_named_and_counted_by_reason():
    rng = np.random.default_rng(0)
    t1 = plain(rng)
    draws = enhanced(rng, t1, 2)

    def refuse(z):
        raise InputError("seg.nii.gz holds the value 9")

    records = [record_of(0, t1, t1, t1, draws)]
    records += [record_of(n, t1, t1, t1, draws, labels=None) for n in (1, 2)]
    records += [record_of(3, t1, t1, t1, draws, labels=0 * LABELS)]
    odd = checks.subject_of(4)
    odd.segmentation_on = refuse
    original, checks.subject_of = checks.subject_of, lambda *a, **k: odd
    try:
        records += [record_of(4, t1, t1, t1, draws)]
    finally:
        checks.subject_of = original
    results = lesion_results(records)
    assert results["skipped"] == {
        NO_SEGMENTATION: ["P001", "P002"],
        NO_LESION: ["P003"],
        "seg.nii.gz holds the value 9": ["P004"],
    }
    line = skipped_line(results)
    assert "\n" not in line and "4 subjects" in line
    assert all(f"P00{n}" in line for n in (1, 2, 3, 4)) and "no segmentation: P001, P002" in line
    none = lesion_results(records[1:3])
    assert none["rows"] == [] and none["enhancement"] is None
    assert skipped_line(lesion_results(records[:1])) == skipped_line(lesion_results([])) == ""
    json.dumps(none)


def test_subjects_that_lack_another_contrast_are_named_and_not_scored():
    records = [r | {"missing": "flair+t1c"} for r in records_of(right_law, subjects=3)]
    results = lesion_results(records)
    names = list(dict.fromkeys(record["subject"] for record in records))
    assert results["rows"] == [] and results["skipped"] == {INCOMPLETE: names}
    assert skipped_line(results).startswith("lesions: 3 subjects without a score")
    assert lesion_rows(records) == []
    whole = records_of(right_law, subjects=4)
    assert lesion_results(whole + records)["skipped"] == {}  # the same names: each is scored once
    others = [r | {"subject": f"other {r['subject']}"} for r in records]
    mixed = lesion_results(whole + others)
    assert str(mixed["rows"]) == str(lesion_results(whole)["rows"])  # NaN is not NaN
    assert len(mixed["skipped"][INCOMPLETE]) == 3


def test_a_subject_counts_once_however_many_lesions_it_has():
    """Of one subject two lesions, of the other one: 1/4, 1/4 and 1/2."""
    rng = np.random.default_rng(0)
    t1 = plain(rng)
    labels = LABELS.copy()
    labels[28:32, 10:16] = 1
    records = [
        record_of(0, t1 * 1.0, t1, t1, enhanced(rng, t1, 4), labels=labels),
        record_of(1, t1 + CORE * 2, t1, t1, enhanced(rng, t1, 4)),
    ]
    row = row_of(lesion_results(records), "mean")
    means = [lesion["truth"]["mean"] for record in records for lesion in record["lesions"]]
    assert (row["subjects"], row["lesions"]) == (2, 3)
    assert row["truth"] == pytest.approx(np.dot(means, [0.25, 0.25, 0.5]))


def test_lesions_csv_has_a_row_for_each_image():
    records = records_of(right_law, subjects=2)
    rows = lesion_rows(
        [*records, {"subject": "P9", "group": "", "missing": "t1", "modality": "t1"}]
    )
    assert len(rows) == 2 * (2 + COUNT)
    assert [row["image"] for row in rows[:3]] == ["truth", "mean", "draw 1"]
    lesion = records[1]["lesions"][0]
    last = rows[-1]
    assert last["subject"] == "P001" and last["image"] == f"draw {COUNT}"
    assert last["p90"] == lesion["draws"]["p90"][-1] and last["pattern"] is None
    assert last["enhancement"] == lesion["draws"]["enhancement"][-1]


def test_one_subject_has_no_spread_between_truths():
    results = lesion_results(records_of(right_law, subjects=1))
    row = row_of(results, "p90")
    assert np.isnan(row["spread_ratio"]) and np.isfinite(row["crps"])


def segmented_world(world, folder):
    """The world with a segmentation of all but its last test subject, and of that none: 12 voxels
    of core in one slice, 30 in the next, oedema around them. One has an odd value."""
    shutil.copytree(world, folder)
    split = split_of(folder)
    for name in [*split["validation"], *split["test"][:1]]:
        labels = np.zeros(SHAPE, np.uint8)
        labels[5:13, 6:16, 2:5] = 2
        labels[6:9, 8:12, 2] = 1
        labels[6:11, 8:14, 3] = 4
        path = path_of(folder / "subjects", name, "t1")
        seg = path.with_name(path.name.replace("_t1.", "_seg."))
        write_new(seg, labels * brain(), AFFINE)
    return split


def test_an_evaluation_scores_lesions_where_there_are_segmentations(world, tmp_path, capsys):
    """From files to files: the truth is every draw's mean, so that everything is at its best."""
    split = segmented_world(world, tmp_path / "world")
    scored, other = split["test"]

    def fill(sampler, images, missing, addresses):
        number = np.asarray(addresses)[:, -1].astype(float) - 1.5 if sampler == "warm" else 0.0
        factor = 1 + 0.05 * np.reshape(number, (-1, 1, 1, 1)) * missing[:, None, None]
        factor = factor * np.ones_like(images)
        factor[:, :8] = 1  # half of the brain
        return np.float32(images * factor)

    changes = {"evaluate__draws": 4, "evaluate__draw_subjects": 0, "evaluate__draw_slices": 0}
    network = FakeNetwork(tmp_path / "world", fill, **changes)
    result = network.evaluate(tmp_path, split=split)
    facts = result["facts"]["lesions"]
    assert facts["skipped"] == {NO_SEGMENTATION: [other]}
    line = f"lesions: 1 subject without a score; {NO_SEGMENTATION}: {other}"
    assert line in capsys.readouterr().out.splitlines()
    rows = {(row["modality"], row["measure"]): row for row in facts["rows"]}
    assert set(rows) == {(m, k) for m in MODALITIES for k in ("mean", "p90")} | {
        ("t1c", "enhancement")
    }
    assert rows["t1c", "p90"]["lesions"] == 2 and rows["flair", "p90"]["lesions"] == 3
    assert rows["t1c", "p90"]["crps_of_mean"] == pytest.approx(0, abs=1e-6)
    assert rows["t1c", "p90"]["draw_sd"] > 0.01
    fitted = json.loads((tmp_path / "run" / "calibration.json").read_text())["lesions"]
    assert fitted["skipped"] == {} and len(fitted["rows"]) == 9
    assert fitted["rows"][0]["subjects"] == 1 and fitted["rows"][0]["spread_ratio"] is None
    assert {row["subject"] for row in result["lesions"]} == {scored}
    voxels = {(row["modality"], row["voxels"]) for row in result["lesions"]}
    assert {n for m, n in voxels if m == "t1c"} == {12, 30}
    picture = result["pictures"][scored]
    shown = network_slices_of(network, scored)[3]  # with the largest section of the core
    np.testing.assert_allclose(picture["truth"][0] / 255, shown / shown.max(), atol=1e-5)
    folder = tmp_path / "out"
    write_evaluation(result, folder)
    with (folder / "lesions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == (2 + 3 * 3) * 6 and {row["slice"] for row in lines} == {"2", "3", "4"}
    assert (folder / "lesions.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "calibration.md").read_text()
    assert "## Lesions" in page and f"1 subject ({NO_SEGMENTATION}): {other}" in page
    assert "Does a lesion enhance" in page


def network_slices_of(network, name):
    """[Z, H, W] FLAIR of a subject on the network's grid."""
    subject = network.cohort.subjects[name]
    prepared = prepare_subject(subject, network.space.modalities, network.space.view)
    return network_slices(prepared, network.space.modalities, np.arange(SHAPE[2]))[..., 0]


@pytest.mark.parametrize("change", ["moved", "odd"])
def test_a_changed_segmentation_is_scored_again_and_an_odd_one_is_named(world, tmp_path, change):
    split = segmented_world(world, tmp_path / "world")
    network = FakeNetwork(tmp_path / "world", lambda s, images, *rest: images)
    first = network.evaluate(tmp_path, split=split)["facts"]["lesions"]
    path = path_of(tmp_path / "world" / "subjects", split["test"][0], "t1")
    seg = path.with_name(path.name.replace("_t1.", "_seg."))
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:11, 8:14, 2:5] = 4 if change == "moved" else 9
    seg.unlink()
    write_new(seg, labels * brain(), AFFINE)
    network = FakeNetwork(tmp_path / "world", lambda s, images, *rest: images)
    second = network.evaluate(tmp_path)["facts"]["lesions"]
    if change == "moved":
        assert second["skipped"] == first["skipped"] and second["rows"] != first["rows"]
    else:
        (reason,) = (r for r, names in second["skipped"].items() if names == split["test"][:1])
        assert "holds the value 9" in reason and second["rows"] == []
