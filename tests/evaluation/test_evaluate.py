"""The scores of known predictions are those that follow by hand; parts are kept rightly."""

import csv
import json
import shutil

import numpy as np
import pytest
from fake_network import FRACTION, PEAK, PEAKS, FakeNetwork, pick, plateau
from tiny_run import AFFINE, MODALITIES, SHAPE, brain, files_under, path_of
from tiny_slices import open_store

from ummcsgm.baselines.ridge import fit_normal_equations, solve_ridge
from ummcsgm.data.nifti import write_new
from ummcsgm.evaluation import evaluate as evaluation
from ummcsgm.evaluation.subject import choose_evenly, possible_patterns
from ummcsgm.reporting.evaluation_report import write_evaluation
from ummcsgm.utils import provenance

pytest_plugins = ["fake_network"]
ERRORS = np.array([0.05, 0.1, 0.15, 0.2], np.float32)  # by channel, of the peak
METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
PNG = b"\x89PNG\r\n\x1a\n"


def perfect(sampler, images, missing, addresses):
    return images


def darker(sampler, images, missing, addresses):
    """Too dark by ERRORS where missing: by twice that where it is drawn."""
    factor = 2 if sampler == "euler_maruyama" else 1
    return images - factor * PEAK * ERRORS * missing[:, None, None] * (images > 0)


@pytest.fixture(scope="module")
def dark(world, tmp_path_factory):
    """`evaluation_results` of `darker`."""
    return FakeNetwork(world, darker).evaluate(tmp_path_factory.mktemp("dark"))


def test_a_perfect_prediction_has_no_error_and_no_psnr(world, tmp_path):
    result = FakeNetwork(world, perfect).evaluate(tmp_path)
    expected = {"psnr": np.nan, "ssim_global": 1.0, "ssim_wang": 1.0, "mae": 0.0}
    for method in ("mean", "algorithm1"):
        for name in MODALITIES:
            for metric, value in expected.items():
                row = pick(result["rows"], method=method, missing=name, metric=metric)
                assert row["mean"] == pytest.approx(value, abs=1e-12, nan_ok=True)
    floor = pick(result["rows"], method="ridge", missing="t1", metric="psnr")
    assert floor["mean"] < 40  # noise is not a function of noise
    write_evaluation(result, tmp_path / "out")
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert len(json.loads(text)["rows"]) == len(result["rows"])


def test_a_known_error_scores_what_follows_by_hand_in_its_own_modality(dark):
    for factor, method in ((1, "mean"), (2, "algorithm1")):
        for channel, name in enumerate(MODALITIES):
            error = factor * ERRORS[channel]
            psnr = pick(dark["rows"], method=method, missing=name, metric="psnr")
            mae = pick(dark["rows"], method=method, missing=name, metric="mae")
            assert psnr["modality"] == mae["modality"] == name
            by_hand = -20 * np.log10(error) - 10 * np.log10(FRACTION)
            assert psnr["mean"] == pytest.approx(by_hand, abs=1e-3)
            assert mae["mean"] == pytest.approx(255 * error * FRACTION, rel=1e-4)
            assert psnr["subjects"] == (2 if method == "mean" else 1)


def test_the_floors_are_ridge_on_the_training_slices(world, dark):
    store = open_store(world / "run" / "prepared", "train")
    fitted = fit_normal_equations(
        (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
    )
    (equations,) = fitted.values()
    name = min(row["subject"] for row in dark["subjects"])
    truth = np.stack([plateau(name, m) / PEAKS[m] for m in MODALITIES], -1)
    truth = truth.transpose(2, 1, 0, 3)[1:]
    for degree, method in ((1, "ridge"), (2, "ridge2")):
        missing = (False, True, False, False)
        predicted = solve_ridge(equations, missing, degree, 1e-4).predict(PEAK * truth)
        estimate = np.clip(predicted[..., 1] / PEAK, 0, 1)
        square = np.square(255 * (estimate - truth[..., 1])).mean(axis=(1, 2))
        expected = np.mean(20 * np.log10(255) - 10 * np.log10(square))
        row = pick(dark["subjects"], subject=name, method=method, missing="t1")
        assert row["psnr"] == pytest.approx(expected, abs=1e-3)
        assert row["slices"] == SHAPE[2] - 1


def test_rows_have_every_method_modality_and_metric_once(dark):
    keys = [(r["method"], r["missing"], r["modality"], r["metric"]) for r in dark["rows"]]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {
        (method, name, name, metric)
        for method in ("ridge", "ridge2", "mean", "algorithm1", "warm")
        for name in MODALITIES
        for metric in METRICS
    }
    assert {row["profile"] for row in dark["rows"]} == {"umm-csgm-table1"}
    assert dark["facts"]["test_subjects"] == 2 and dark["facts"]["step"] == 7


def test_the_sd_over_subjects_is_that_of_a_sample(world, tmp_path):
    first = []

    def by_subject(sampler, images, missing, addresses):
        first.append(addresses[0, 0])
        share = 0.1 if addresses[0, 0] == first[0] else 0.2
        return images - share * PEAK * missing[:, None, None] * (images > 0)

    result = FakeNetwork(world, by_subject).evaluate(tmp_path)
    row = pick(result["rows"], method="mean", missing="t2", metric="mae")
    values = 255 * FRACTION * np.array([0.1, 0.2])
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert row["sd"] == pytest.approx(values.std(ddof=1), rel=1e-4)
    alone = pick(result["rows"], method="algorithm1", missing="t2", metric="mae")
    assert np.isnan(alone["sd"]) and alone["subjects"] == 1


def test_all_missing_patterns_are_evaluated_by_flag(world, tmp_path):
    network = FakeNetwork(world, darker)
    result = network.evaluate(tmp_path, every=True)
    pairs = {(r["missing"], r["modality"]) for r in result["rows"] if r["method"] == "mean"}
    assert len({missing for missing, _ in pairs}) == 14 and len(pairs) == 28
    assert ("flair+t1c+t2", "t1c") in pairs
    for channel, name in enumerate(MODALITIES):
        missing = "flair+t1+t1c" if name != "t2" else "t1+t2"
        row = pick(result["rows"], method="mean", missing=missing, modality=name, metric="mae")
        assert row["mean"] == pytest.approx(255 * ERRORS[channel] * FRACTION, rel=1e-4)
    patterns = {tuple(row) for _, missing, _ in network.calls for row in missing.tolist()}
    assert len(patterns) == 14 and (True,) * 4 not in patterns


@pytest.mark.parametrize(("subjects", "slices", "expected"), [(1, 2, [2]), (0, 0, [5, 5])])
def test_algorithm_1_draws_its_share_and_0_means_all(world, tmp_path, subjects, slices, expected):
    changes = {"evaluate__algorithm1_subjects": subjects, "evaluate__algorithm1_slices": slices}
    network = FakeNetwork(world, darker, **changes)
    result = network.evaluate(tmp_path)
    drawn = [call for call in network.calls if call[0] == "euler_maruyama"]
    assert [len(missing) for _, missing, _ in drawn] == [4 * n for n in expected]
    assert len({tuple(row) for *_, a in drawn for row in a.tolist()}) == sum(expected)
    same = [r for r in result["subjects"] if r["method"] == "mean_same_slices"]
    assert len(same) == 4 * len(expected)
    for row in same:
        channel = MODALITIES.index(row["modality"])
        assert row["mae"] == pytest.approx(255 * ERRORS[channel] * FRACTION, rel=1e-4)
    facts = result["facts"]["algorithm1"]
    assert (facts["subjects"], facts["slices"]) == (len(expected), sum(expected))
    for name in MODALITIES:
        gap = facts["psnr_of_mean"][name] - facts["psnr"][name]
        assert gap == pytest.approx(20 * np.log10(2), abs=1e-3)


def test_the_test_subjects_alone_are_evaluated_and_groups_take_turns(world, dark):
    split = json.loads((world / "run" / "split.json").read_text())
    shown = list(dict.fromkeys(row["subject"] for row in dark["subjects"]))
    assert sorted(shown) == split["test"] and list(dark["panels"]) == shown
    groups = {row["subject"]: row["group"] for row in dark["subjects"]}
    assert all(groups[n] == ("HGG" if int(n[1:]) % 2 else "LGG") for n in shown)


def test_a_stopped_evaluation_continues_and_reads_each_subject_once(world, tmp_path, monkeypatch):
    reads, read = [], evaluation.read_subject

    def counted(subject, *spec):
        reads.append(subject.name)
        return read(subject, *spec)

    monkeypatch.setattr(evaluation, "read_subject", counted)
    network = FakeNetwork(world, darker)
    whole = network.evaluate(tmp_path)
    split = json.loads((world / "run" / "split.json").read_text())
    assert sorted(reads) == split["test"]
    count = len(network.calls)
    again = network.evaluate(tmp_path)
    assert len(network.calls) == count and len(reads) == 2
    for name in ("rows", "subjects", "facts", "panels", "pictures", "slabs"):
        np.testing.assert_equal(again[name], whole[name])
    parts = tmp_path / "run" / "evaluation" / "parts"
    (parts / "mm-csn" / f"{reads[0]}.npz").unlink()
    half = parts / "ridge" / f"{reads[1]}.npz"  # a copy that was cut short
    half.write_bytes(half.read_bytes()[:-100])
    np.testing.assert_equal(network.evaluate(tmp_path)["rows"], whole["rows"])
    assert 0 < len(network.calls) - count < count and len(reads) == 4


@pytest.mark.parametrize(
    "change", [{"evaluate__algorithm1_slices": 3}, {"evaluate__algorithm1_steps": 4}, {"seed": 5}]
)
def test_parts_with_other_options_are_computed_again(world, tmp_path, change):
    FakeNetwork(world, darker).evaluate(tmp_path)
    network = FakeNetwork(world, perfect, **change)
    rows = network.evaluate(tmp_path)["rows"]
    assert pick(rows, method="mean", missing="t1", metric="mae")["mean"] == 0


def test_parts_are_computed_again_if_the_code_of_their_numbers_changed(
    world, tmp_path, monkeypatch
):
    """A solver is mended: the number that it gave before is not served."""
    package, requested = provenance.PACKAGE, []
    network = FakeNetwork(world, darker)
    for name, file in (
        ("as it is", None),
        ("a page is written in another way", "reporting/page.py"),
        ("a solver is mended", "diffusion/solvers.py"),
    ):
        copy = shutil.copytree(package, tmp_path / name, ignore=shutil.ignore_patterns("__py*"))
        if file:
            (copy / file).write_text((copy / file).read_text() + "# changed")
        monkeypatch.setattr(provenance, "PACKAGE", copy)
        before = len(network.calls)
        network.evaluate(tmp_path)
        requested.append(len(network.calls) - before)
    assert requested == [requested[0], 0, requested[0]] and requested[0] > 0


def test_the_digest_of_the_code_names_what_exists():
    for name in provenance.NUMERIC_CODE:
        assert (provenance.PACKAGE / name).exists(), name


def test_a_changed_image_is_evaluated_again(world, tmp_path):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    network = FakeNetwork(tmp_path, darker)
    first = network.evaluate(tmp_path)
    name = first["subjects"][0]["subject"]
    write_new(path_of(tmp_path / "subjects", name, "t2"), plateau("other", "t2"), AFFINE)
    before = len(network.calls)
    second = network.evaluate(tmp_path)
    assert len(network.calls) > before
    row = {"subject": name, "method": "ridge", "missing": "t1"}
    assert pick(first["subjects"], **row)["psnr"] != pick(second["subjects"], **row)["psnr"]


def test_files_hold_the_numbers(dark, tmp_path):
    write_evaluation(dark, tmp_path)
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ["method", "missing", "modality", "profile", "profile_hash", "metric"]
    assert list(table[0]) == [*columns, "mean", "sd", "subjects"]
    numbers = [(float(row["mean"]), int(row["subjects"])) for row in table]
    assert numbers == [(row["mean"], row["subjects"]) for row in dark["rows"]]
    with (tmp_path / "subjects.csv").open() as file:
        subjects = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in subjects] == [row["psnr"] for row in dark["subjects"]]
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["facts"]["test_subjects"] == 2
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    assert sorted(files_under(tmp_path)) == [
        "calibration.csv",
        "calibration.md",
        "figure.png",
        "metrics.json",
        "ranks.png",  # without a curve of reliability, as nothing is spread
        "structure.csv",
        "structure.png",
        "subjects.csv",
        "table.csv",
        "table.md",
        "two_sample.csv",  # says that subjects are too few
        "uncertainty.png",
    ]


def tight(image):
    """The rows and columns with anything in them: grid and frame differ by a margin."""
    return image[image.any(axis=1)][:, image.any(axis=0)]


def test_panels_show_truth_and_predictions_in_grey_levels(dark):
    for name, panels in dark["panels"].items():
        for channel, modality in enumerate(MODALITIES):
            truth, mean = panels["truth"][channel], panels["mean"][channel]
            inside = truth > 0
            assert truth.max() == 255 and inside.sum() == brain()[..., 1].sum()
            gap = (truth - mean)[inside]
            np.testing.assert_allclose(gap, 255 * ERRORS[channel], rtol=1e-3)
            original = plateau(name, modality).transpose(2, 1, 0)[:, ::-1, ::-1]
            grey = original * (255 / PEAKS[modality])
            assert any(
                tight(slice_z).shape == tight(truth).shape
                and np.allclose(tight(truth), tight(slice_z))
                for slice_z in grey
            )


def test_slices_are_chosen_evenly_and_away_from_the_ends():
    z = np.arange(10, 20)
    assert choose_evenly(z, 2).tolist() == [12, 17]
    assert choose_evenly(z, 3).tolist() == [11, 15, 18]
    assert choose_evenly(z, 0) is z and choose_evenly(z, 10) is z


def test_a_pattern_needs_a_truth_and_something_seen():
    patterns = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
    missing, scored = possible_patterns(patterns, np.array([True, True, False]))
    assert scored.tolist() == patterns[:2].tolist()  # t2 has no truth; both leave nothing
    assert missing[:, 2].all() and (missing[:, :2] == scored[:, :2]).all()
