"""The scores of answers that are known beforehand are those that follow by hand.

The answers come from a stand-in for the network, on subjects whose brightest tissue is
a power of two: scaling is then exact, and a perfect answer is perfect to the last bit.
"""

import csv
import json
import shutil

import numpy as np
import pytest
from tiny_run import AFFINE, MODALITIES, NAMES, SHAPE, brain, files_under, path_of, tiny_config

from ummcsgm.baselines.ridge import fit_normal_equations, solve_ridge
from ummcsgm.config import build
from ummcsgm.config.build_data import find_anywhere
from ummcsgm.config.preparation import prepare
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.nifti import write_new
from ummcsgm.data.store import open_store
from ummcsgm.data.subjects import network_stacks, prepare_subject
from ummcsgm.evaluation import evaluate
from ummcsgm.inference import predictor
from ummcsgm.reporting.evaluation_report import write_evaluation
from ummcsgm.types import Estimate, InputError
from ummcsgm.utils import provenance

PEAKS = {"flair": 512, "t1": 1024, "t1c": 2048, "t2": 256}
ERRORS = np.array([0.05, 0.1, 0.15, 0.2], np.float32)  # by channel, of the peak
FRACTION = brain()[..., 1].sum() / (SHAPE[0] * SHAPE[1])  # of the frame, all slices
METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
PNG = b"\x89PNG\r\n\x1a\n"


def plateau(name, modality):
    """Two thirds of the brain at the peak, the rest from a half of it upwards."""
    peak = PEAKS[modality]
    rng = np.random.default_rng([*name.encode(), *modality.encode()])
    values = np.clip(rng.integers(peak // 2, 2 * peak, SHAPE), 0, peak)
    return np.where(brain(), values, 0).astype(np.int16)


PEAK = np.float32(PEAKS["t1"] / fit_scale(plateau("P1", "t1")))  # for the network


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Subjects, and a workdir in which they are split."""
    root = tmp_path_factory.mktemp("evaluate")
    for name in NAMES:
        for modality in MODALITIES:
            path = path_of(root / "subjects", name, modality)
            write_new(path, plateau(name, modality), AFFINE)
    config = tiny_config(root / "subjects")
    (root / "run").mkdir()
    prepare(config, root / "run")
    return root


def address_by_image(world, config):
    """The address of draw 0 of every slice, by the bytes of the images of it."""
    space, found = build.build_space(config), {}
    for subject in find_anywhere(config, world / "subjects").subjects:
        prepared = prepare_subject(subject, space.modalities, space.view)
        z = np.arange(len(prepared.brain))
        images = network_stacks(prepared, space.modalities, z)
        addresses = predictor.slice_addresses(subject.name, z, draw=0)
        found |= {image.tobytes(): own for image, own in zip(images, addresses, strict=True)}
    return found


def stand_in(monkeypatch, world, fill, *, variance=None, **changes):
    """evaluate() asks fill(sampler, images, missing, addresses); returns its calls.

    A `rho` that is not 0 is told it too. `variance(mean)` is the variance that is
    predicted, if any.
    """
    config = tiny_config(world / "subjects", **changes)
    calls, known = [], address_by_image(world, config)

    def load(workdir):
        space = build.build_space(config)
        return predictor.TrainedModel(
            config, space, None, None, 7, {}, {}, (3.0, 2.0), "digest", "slices"
        )

    def mean_of(images, missing):
        if any(image.tobytes() not in known for image in images):  # a file was changed
            known.update(address_by_image(world, config))
        addresses = np.array([known[image.tobytes()] for image in images])
        return fill("mean", images, missing, addresses), addresses

    def make_mean(trained, scoring):
        def mean(images, missing):
            filled, addresses = mean_of(images, missing)
            calls.append(("mean", missing, addresses))
            return Estimate(filled, None if variance is None else variance(filled))

        return mean

    def make_sample(trained, sampler, scoring, rho=0.0):
        along = {"rho": rho} if rho else {}

        def sample(images, missing, addresses, told=None):
            if sampler == "warm":  # all draws share what the network told
                own, _ = mean_of(images, missing)
                np.testing.assert_array_equal(told.mean, own)
                if variance is not None:
                    np.testing.assert_array_equal(told.variance, variance(own))
            for draw in addresses:
                calls.append((sampler, missing, draw))
                yield fill(sampler, images, missing, draw, **along)

        return sample

    monkeypatch.setattr(evaluate, "load_trained_model", load)
    monkeypatch.setattr(evaluate, "make_mean_predictor", make_mean)
    monkeypatch.setattr(evaluate, "make_sampler", make_sample)
    return calls


def perfect(sampler, images, missing, addresses):
    return images


def darker(sampler, images, missing, addresses):
    """Too dark by ERRORS where missing: by twice that where it is drawn."""
    factor = 2 if sampler == "euler_maruyama" else 1
    return images - factor * PEAK * ERRORS * missing[:, None, None] * (images > 0)


def evaluated(world, tmp_path, every=False, split=None):
    workdir = tmp_path / "run"
    if not workdir.exists():
        shutil.copytree(world / "run", workdir)
        if split is not None:
            (workdir / "split.json").write_text(json.dumps(split))
    return evaluate.evaluate(workdir, None, every)[0]


def pick(rows, **wanted):
    """The only row with these values."""
    (row,) = (r for r in rows if all(r[k] == v for k, v in wanted.items()))
    return row


def test_a_perfect_answer_is_infinitely_good_in_every_modality(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, perfect)
    rows = evaluated(world, tmp_path)["rows"]
    expected = {"psnr": np.inf, "ssim_global": 1.0, "ssim_wang": 1.0, "mae": 0.0}
    for method in ("mean", "algorithm1"):
        for name in MODALITIES:
            for metric, value in expected.items():
                asked = {"method": method, "missing": name, "metric": metric}
                row = pick(rows, **asked)
                assert row["mean"] == pytest.approx(value, abs=1e-12), asked
    floor = pick(rows, method="ridge", missing="t1", metric="psnr")
    assert floor["mean"] < 40  # noise is not a function of noise


def test_a_known_error_scores_what_follows_by_hand_in_its_own_modality(
    world, tmp_path, monkeypatch
):
    stand_in(monkeypatch, world, darker)
    rows = evaluated(world, tmp_path)["rows"]
    for factor, method in ((1, "mean"), (2, "algorithm1")):
        for channel, name in enumerate(MODALITIES):
            error = factor * ERRORS[channel]
            psnr = pick(rows, method=method, missing=name, metric="psnr")
            mae = pick(rows, method=method, missing=name, metric="mae")
            assert psnr["modality"] == mae["modality"] == name
            by_hand = -20 * np.log10(error) - 10 * np.log10(FRACTION)
            assert psnr["mean"] == pytest.approx(by_hand, abs=1e-3)
            assert mae["mean"] == pytest.approx(255 * error * FRACTION, rel=1e-4)
            assert psnr["subjects"] == (2 if method == "mean" else 1)


def test_the_floors_are_ridge_on_the_training_slices(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, perfect)
    rows = evaluated(world, tmp_path)["subjects"]
    store = open_store(world / "run" / "prepared", "train")
    fitted = fit_normal_equations(
        (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
    )
    (moments,) = fitted.values()
    name = next(iter(sorted({row["subject"] for row in rows})))
    truth = np.stack([plateau(name, m) / PEAKS[m] for m in MODALITIES], -1)
    truth = truth.transpose(2, 1, 0, 3)[1:]
    for degree, method in ((1, "ridge"), (2, "ridge2")):
        missing = (False, True, False, False)
        answered = solve_ridge(moments, missing, degree, 1e-4).predict(PEAK * truth)
        estimate = np.clip(answered[..., 1] / PEAK, 0, 1)
        square = np.square(255 * (estimate - truth[..., 1])).mean(axis=(1, 2))
        expected = np.mean(20 * np.log10(255) - 10 * np.log10(square))
        row = pick(rows, subject=name, method=method, missing="t1")
        assert row["psnr"] == pytest.approx(expected, abs=1e-3)
        assert row["slices"] == SHAPE[2] - 1


def test_rows_have_every_method_modality_and_metric_once(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, darker)
    result = evaluated(world, tmp_path)
    asked = [(r["method"], r["missing"], r["modality"], r["metric"]) for r in result["rows"]]
    assert len(set(asked)) == len(asked)
    assert set(asked) == {
        (method, name, name, metric)
        for method in ("ridge", "ridge2", "mean", "algorithm1", "warm")
        for name in MODALITIES
        for metric in METRICS
    }
    assert {row["profile"] for row in result["rows"]} == {"umm-csgm-table1"}
    assert result["facts"]["test_subjects"] == 2 and result["facts"]["step"] == 7


def test_the_spread_over_subjects_is_that_of_a_sample(world, tmp_path, monkeypatch):
    calls = []

    def by_subject(sampler, images, missing, addresses):
        calls.append(addresses[0, 0])
        share = 0.1 if addresses[0, 0] == calls[0] else 0.2
        return images - share * PEAK * missing[:, None, None] * (images > 0)

    stand_in(monkeypatch, world, by_subject)
    result = evaluated(world, tmp_path)
    row = pick(result["rows"], method="mean", missing="t2", metric="mae")
    values = 255 * FRACTION * np.array([0.1, 0.2])
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert row["sd"] == pytest.approx(values.std(ddof=1), rel=1e-4)
    alone = pick(result["rows"], method="algorithm1", missing="t2", metric="mae")
    assert np.isnan(alone["sd"]) and alone["subjects"] == 1


def test_every_configuration_is_asked_by_flag(world, tmp_path, monkeypatch):
    calls = stand_in(monkeypatch, world, darker)
    result = evaluated(world, tmp_path, every=True)
    asked = {(r["missing"], r["modality"]) for r in result["rows"] if r["method"] == "mean"}
    assert len({missing for missing, _ in asked}) == 14 and len(asked) == 28
    assert ("flair+t1c+t2", "t1c") in asked
    for channel, name in enumerate(MODALITIES):
        row = pick(
            result["rows"],
            method="mean",
            missing="flair+t1+t1c" if name != "t2" else "t1+t2",
            modality=name,
            metric="mae",
        )
        assert row["mean"] == pytest.approx(255 * ERRORS[channel] * FRACTION, rel=1e-4)
    questions = {tuple(row) for _, missing, _ in calls for row in missing.tolist()}
    assert len(questions) == 14 and (True,) * 4 not in questions


@pytest.mark.parametrize(
    ("subjects", "slices", "expected"), [(1, 2, [2]), (0, 0, [5, 5]), (2, 3, [3, 3])]
)
def test_algorithm_1_answers_for_its_share_and_0_means_all(
    world, tmp_path, monkeypatch, subjects, slices, expected
):
    calls = stand_in(
        monkeypatch,
        world,
        darker,
        evaluate__algorithm1_subjects=subjects,
        evaluate__algorithm1_slices=slices,
    )
    result = evaluated(world, tmp_path)
    drawn = [call for call in calls if call[0] == "euler_maruyama"]
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


def test_the_test_subjects_alone_are_asked_and_groups_take_turns(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, darker)
    result = evaluated(world, tmp_path)
    split = json.loads((world / "run" / "split.json").read_text())
    shown = list(dict.fromkeys(row["subject"] for row in result["subjects"]))
    assert sorted(shown) == split["test"] and list(result["panels"]) == shown
    groups = {row["subject"]: row["group"] for row in result["subjects"]}
    assert all(groups[n] == ("HGG" if int(n[1:]) % 2 else "LGG") for n in shown)


def test_a_stopped_evaluation_goes_on_where_it_was(world, tmp_path, monkeypatch):
    calls = stand_in(monkeypatch, world, darker)
    whole = evaluated(world, tmp_path)
    asked = len(calls)
    again = evaluated(world, tmp_path)
    assert len(calls) == asked
    for kept in ("rows", "subjects", "facts", "panels"):
        np.testing.assert_equal(again[kept], whole[kept])
    parts = sorted((tmp_path / "run" / "evaluation" / "parts").iterdir())
    parts[0].unlink()
    np.testing.assert_equal(evaluated(world, tmp_path)["rows"], whole["rows"])
    assert 0 < len(calls) - asked < asked


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate__ridge_penalty": 1e-2},
        {"evaluate__algorithm1_slices": 3},
        {"evaluate__algorithm1_steps": 4},
        {"seed": 5},
    ],
)
def test_kept_numbers_of_another_exam_are_not_taken(world, tmp_path, monkeypatch, change):
    stand_in(monkeypatch, world, darker)
    evaluated(world, tmp_path)
    calls = stand_in(monkeypatch, world, perfect, **change)
    rows = evaluated(world, tmp_path)["rows"]
    assert calls
    assert pick(rows, method="mean", missing="t1", metric="psnr")["mean"] == np.inf


def test_parts_are_computed_again_where_code_of_their_numbers_has_changed(
    world, tmp_path, monkeypatch
):
    """A solver was mended: the number that it gave before is not served."""
    package, asked = provenance.PACKAGE, []
    calls = stand_in(monkeypatch, world, darker)
    for name, file in (
        ("as it is", None),
        ("a page is written in another way", "reporting/evaluation_report.py"),
        ("a solver is mended", "diffusion/solvers.py"),
    ):
        copy = shutil.copytree(package, tmp_path / name, ignore=shutil.ignore_patterns("__py*"))
        if file:
            (copy / file).write_text((copy / file).read_text() + "# changed")
        monkeypatch.setattr(provenance, "PACKAGE", copy)
        before = len(calls)
        evaluated(world, tmp_path)
        asked.append(len(calls) - before)
    assert asked == [asked[0], 0, asked[0]] and asked[0] > 0


def test_a_changed_image_is_evaluated_anew(world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    calls = stand_in(monkeypatch, tmp_path, darker)
    first = evaluate.evaluate(tmp_path / "run", None, False)[0]
    name = first["subjects"][0]["subject"]
    write_new(path_of(tmp_path / "subjects", name, "t2"), plateau("other", "t2"), AFFINE)
    before = len(calls)
    second = evaluate.evaluate(tmp_path / "run", None, False)[0]
    assert len(calls) > before
    row = {"subject": name, "method": "ridge", "missing": "t1"}
    assert pick(first["subjects"], **row)["psnr"] != pick(second["subjects"], **row)["psnr"]


@pytest.mark.parametrize("fill", [perfect, darker])
def test_what_is_written_is_whole_and_json_has_no_nan(world, tmp_path, monkeypatch, fill):
    stand_in(monkeypatch, world, fill)
    result = evaluated(world, tmp_path)
    folder = tmp_path / "out"
    write_evaluation(result, folder)
    with (folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ["method", "missing", "modality", "profile", "profile_hash", "metric"]
    assert list(table[0]) == [*columns, "mean", "sd", "subjects"]
    numbers = [(float(row["mean"]), int(row["subjects"])) for row in table]
    assert numbers == [(row["mean"], row["subjects"]) for row in result["rows"]]
    with (folder / "subjects.csv").open() as file:
        subjects = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in subjects] == [row["psnr"] for row in result["subjects"]]

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "metrics.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert len(content["rows"]) == len(result["rows"])
    assert content["facts"]["test_subjects"] == 2
    assert (folder / "figure.png").read_bytes().startswith(PNG)
    assert sorted(files_under(folder)) == [
        "calibration.csv",
        "calibration.md",
        "figure.png",
        "metrics.json",
        "ranks.png",  # without a curve of reliability, as nothing is spread
        "subjects.csv",
        "table.csv",
        "table.md",
        "uncertainty.png",
    ]


def tight(image):
    """The rows and columns with anything in them: grid and frame differ by a margin."""
    return image[image.any(axis=1)][:, image.any(axis=0)]


def test_panels_show_truth_and_answers_in_grey_levels(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, darker)
    for name, panels in evaluated(world, tmp_path)["panels"].items():
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


def test_without_a_test_subject_there_is_no_evaluation(world, tmp_path, monkeypatch):
    stand_in(monkeypatch, world, darker)
    workdir = shutil.copytree(world / "run", tmp_path / "run")
    split = json.loads((workdir / "split.json").read_text())
    moved = {"train": split["train"] + split["test"], "validation": [], "test": []}
    (workdir / "split.json").write_text(json.dumps(moved))
    with pytest.raises(InputError, match="split.json has no test subject"):
        evaluate.evaluate(workdir, None, False)
