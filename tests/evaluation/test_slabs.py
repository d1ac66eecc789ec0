"""How slices go together, of draws whose coherence is known, through the evaluation.

The network's mean errs by noise of sd ERROR of the peak that correlates along z by
TRUTH, and so do the draws about it, by what the stand-in makes of its rho.
"""

import csv
import functools
import json
import re

import numpy as np
import pytest
from fake_network import PEAK, FakeNetwork, split_of
from test_ensembles import ERROR, GREY, PNG
from tiny_run import MODALITIES, SHAPE

from ummcsgm.evaluation import through_plane
from ummcsgm.evaluation.subject import SubjectSlices
from ummcsgm.evaluation.through_plane import (
    compare_slab,
    coronal_ssim,
    fit,
    lag_one,
    middle_slab,
    pooled_sd,
    summaries,
)
from ummcsgm.reporting.evaluation_report import write_evaluation

pytest_plugins = ["fake_network"]
TRUTH = 0.6
SLAB = {"evaluate__slab_slices": 5, "evaluate__slab_subjects": 0, "evaluate__draws": 4}


@functools.cache
def series(rho, *address):
    """Standard normal [Z, 16, 16, 4] that correlates by rho^|dz| along z."""
    noise = np.random.default_rng(address).normal(size=(SHAPE[2], 16, 16, 4))
    for z in range(1, len(noise)):
        noise[z] = rho * noise[z - 1] + np.sqrt(1 - rho**2) * noise[z]
    return noise.astype(np.float32)


def along(passed=lambda rho: rho):
    """fill(..., rho): draws correlate along z by passed(rho)."""

    def fill(sampler, images, missing, addresses, rho=0.0):
        requested = missing[:, None, None] * (images > 0) * PEAK * ERROR
        errors = [series(TRUTH, 1, a[0])[a[1]] for a in addresses.tolist()]
        mean = images + requested * np.stack(errors)
        if sampler == "mean":
            return mean
        group = passed(rho)
        noise = [series(group, 2, a[0], a[2])[a[1]] for a in addresses.tolist()]
        return mean + requested * np.stack(noise)

    return fill


def measured(world, tmp_path, fill, **changes):
    network = FakeNetwork(world, fill, **SLAB | changes)
    return network.evaluate(tmp_path, split=split_of(world))


def rows_of(result, modality, image):
    rows = result["facts"]["coherence"]["summaries"]
    return [r for r in rows if (r["modality"], r["image"]) == (modality, image)]


def told(tmp_path):
    return json.loads((tmp_path / "run" / "calibration.json").read_text())


def test_draws_at_the_fitted_rho_go_together_as_the_truth_does(world, tmp_path):
    result = measured(world, tmp_path, along())
    facts = result["facts"]["coherence"]
    assert facts["rho"] == pytest.approx(TRUTH, abs=0.06)
    assert facts["lag_one"] == pytest.approx(facts["rho"], abs=1e-3)
    assert [rho for rho, _ in facts["draws"]] == [0, facts["rho"]]  # not corrected
    for modality in (*MODALITIES, "all"):
        (truth,) = rows_of(result, modality, "truth")
        (mean,) = rows_of(result, modality, "mean")
        still, together = rows_of(result, modality, "draw")
        assert (still["rho"], together["rho"]) == (0, facts["rho"])
        tolerance = 0.12 if modality != "all" else 0.06
        assert truth["lag_one"] == pytest.approx(TRUTH, abs=tolerance)
        assert still["lag_one"] == pytest.approx(0, abs=tolerance)
        assert together["lag_one"] == pytest.approx(facts["rho"], abs=tolerance)
        assert still["sd_ratio"] == 1
        assert together["sd_ratio"] == pytest.approx(1, abs=0.1)
        assert truth["gradient_error"] == 0 and mean["lag_one"] is None
        # of the error alone, E|d| of a normal law of variance 2 (1 - rho)
        expected = GREY * np.sqrt(2 / np.pi) * np.sqrt(2 * (1 - TRUTH))
        assert mean["gradient_error"] == pytest.approx(expected, rel=0.1)
        assert still["gradient_error"] > 1.1 * together["gradient_error"]
        assert truth["subjects"] == 2 and truth["coronal_ssim"] is None  # 5 slices


def test_rho_is_fitted_on_validation_alone_and_saved(world, tmp_path):
    network = FakeNetwork(world, along(), **SLAB)
    result = network.evaluate(tmp_path, split=split_of(world))
    saved = told(tmp_path)
    assert saved["rho"] == result["facts"]["coherence"]["rho"] > 0.4
    assert saved["coherence"] == json.loads(
        json.dumps({k: result["facts"]["coherence"][k] for k in saved["coherence"]})
    )
    requested = len(network.calls)
    again = network.evaluate(tmp_path)
    assert len(network.calls) == requested
    np.testing.assert_equal(again["facts"], result["facts"])
    for name, marks in again["slabs"].items():
        assert marks["records"] == result["slabs"][name]["records"]
    only = along(lambda rho: 0.0)
    changed = SLAB | {"evaluate__slab_slices": 4}
    network = FakeNetwork(world, only, **changed)
    rows = rows_of(network.evaluate(tmp_path), "all", "draw")
    assert {len(marks["records"]) for marks in again["slabs"].values()} == {16}
    assert all(abs(row["lag_one"]) < 0.1 for row in rows)


def test_a_sampler_that_passes_on_less_is_given_more_once(world, tmp_path):
    result = measured(world, tmp_path, along(lambda rho: 0.8 * rho))
    facts = result["facts"]["coherence"]
    (_, low), (first, high) = facts["draws"]
    assert high < facts["lag_one"] - 0.05
    expected = first * (facts["lag_one"] - low) / (high - low)
    assert facts["rho"] == pytest.approx(expected, abs=1e-3)
    truth, _, together = (*rows_of(result, "all", "truth"), *rows_of(result, "all", "draw"))
    assert together["lag_one"] == pytest.approx(truth["lag_one"], abs=0.08)
    write_evaluation(result, tmp_path / "out")
    assert "it was corrected once" in (tmp_path / "out" / "coherence.md").read_text()


def records(truth, draw):
    """Those of one slab whose lag-1 are these."""
    group = {"truth": truth, "draw": draw}
    return [{"image": k, "sums": [v, 1.0, 1.0]} for k, v in group.items()]


@pytest.mark.parametrize(
    "lags, expected",
    [
        ({0.0: 0.1, 0.6: 0.57}, 0.6),  # within 0.05 of the truth's
        ({0.0: 0.1, 0.6: 0.5}, 0.75),
        ({0.0: 0.1, 0.6: 0.7}, 0.5),
        ({0.0: 0.1, 0.6: 0.2}, 0.99),  # never the same noise in all slices
        ({0.0: 0.1, 0.6: 0.05}, 0.6),  # rho does nothing: it stays
        ({0.0: 0.8, 0.6: 0.9}, 0.0),  # draws share more than the truth's errors
    ],
)
def test_the_secant_step_by_hand(lags, expected):
    requested = []

    def measured(rho):
        requested.append(rho)
        return records(0.6, lags[rho])

    found = fit(records(0.6, lags[0.0]), measured)
    assert found["rho"] == pytest.approx(expected) and requested == [0.6]
    assert found["draws"] == [*lags.items()] and found["lag_one"] == 0.6


def test_nothing_is_fitted_without_records_or_coherence():
    assert fit([], None) == {}
    assert fit(records(-0.2, 0.0), None)["rho"] == 0
    assert fit(records(1.0, 0.0), lambda rho: records(1.0, rho))["rho"] == 0.99


def test_without_validation_slices_are_measured_as_they_are_drawn(world, tmp_path):
    network = FakeNetwork(world, along(), **SLAB)
    result = network.evaluate(tmp_path)
    assert "rho" not in result["facts"]["coherence"]
    (row,) = rows_of(result, "all", "draw")
    assert row["rho"] == 0 and abs(row["lag_one"]) < 0.1
    write_evaluation(result, tmp_path / "out")
    page = (tmp_path / "out" / "coherence.md").read_text()
    assert "no validation subject to fit a rho on" in page


def test_files_hold_the_numbers_and_a_view(world, tmp_path):
    result = measured(world, tmp_path, along())
    folder = tmp_path / "out"
    write_evaluation(result, folder)
    rows = result["facts"]["coherence"]["summaries"]
    with (folder / "coherence.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 5 * 4
    for line, row in zip(lines, rows, strict=True):
        assert float(line["gradient"]) == row["gradient"]
        assert line["lag_one"] == ("" if row["lag_one"] is None else f"{row['lag_one']}")
    page, table = (
        re.sub(" +", " ", (folder / f"{n}.md").read_text()) for n in ("coherence", "table")
    )
    rho = result["facts"]["coherence"]["rho"]
    for modality in (*MODALITIES, "all"):
        row = rows_of(result, modality, "draw")[1]
        cells = f"| draw | {rho:g} | {row['lag_one']:.3f} | {row['sd_ratio']:.3f} |"
        assert f"## {modality}\n" in page and cells in page
    lag = rows_of(result, "all", "draw")[1]["lag_one"]
    assert f"{lag:.2f} with noise of rho {rho:g} (coherence.md)" in table
    content = json.loads((folder / "coherence.json").read_text())
    assert content["facts"]["rho"] == rho
    assert len(content["records"]) == 2 * 4 * 4
    assert (folder / "coherence.png").read_bytes().startswith(PNG)
    records, pictures = next(iter(result["slabs"].values())).values()
    assert records[0]["flatness"] == 4 / 2
    for m in range(len(MODALITIES)):
        truth, drawn = pictures["truth"][m], pictures["draws"][m]
        assert truth.shape == (5, 16) and len(drawn) == 2  # rhos
        inside = truth > 0
        for estimate in (pictures["mean"][m], *drawn):
            off = (estimate - truth)[inside]
            assert 0.4 * GREY < np.sqrt(np.mean(off**2)) < 2.5 * GREY


def test_a_slab_is_the_middle_of_the_brain():
    brain = np.zeros((20, 2, 2), bool)
    brain[4:17] = True
    assert middle_slab(brain, 5).tolist() == [8, 9, 10, 11, 12]
    assert middle_slab(brain, 4).tolist() == [8, 9, 10, 11]
    assert middle_slab(brain, 40).tolist() == list(range(4, 17))
    brain[:] = False
    brain[7] = True
    assert middle_slab(brain, 5).tolist() == [7]


def test_a_spread_is_pooled_over_neighbours_in_the_brain_and_has_a_floor():
    rng = np.random.default_rng(0)
    brain = np.ones((6, 20, 20), bool)
    brain[:, :, 15:] = False
    wide = np.where(np.arange(20) < 8, 2.0, 0.001)
    draws = wide * rng.normal(size=(4, 6, 20, 20)) + 100 * ~brain
    sd = pooled_sd(draws, brain)
    assert np.abs(sd[:, :, :6] / 2 - 1).max() < 0.5  # of 4 draws alone: 0.4 to 1.7
    assert sd[:, :, :6].std() < 0.2 * 2
    rms = 2 * np.sqrt(8 / 15)
    np.testing.assert_allclose(sd[:, :, 10:15], 0.1 * rms, rtol=0.1)
    assert not pooled_sd(np.repeat(draws[:1], 4, axis=0), brain).any()


def test_the_lag_is_that_of_residuals_and_only_of_the_brain():
    """Two channels, of which the second is asked for; sds that differ by 10, and in
    the truth the two halves' coherence does too: each voxel counts alike."""
    shape = (12, 24, 24, 2)
    rng = np.random.default_rng(1)
    brain = np.broadcast_to(np.arange(24) > 3, shape[:3])
    narrow = np.arange(24)[:, None, None] < 12
    scale = np.where(narrow, 1.0, 10.0)

    def noise(rho):
        values = rng.normal(size=shape)
        for z in range(1, 12):
            values[z] = rho * values[z - 1] + np.sqrt(1 - rho**2) * values[z]
        return scale * values + 1e3 * ~brain[..., None]

    mean = np.full(shape, 100.0)
    images = np.where(brain[..., None], mean + noise(np.where(narrow, 0.8, 0.4)), 0)
    slices = SubjectSlices("P", np.arange(12), images, brain, np.ones(2))
    draws = {rho: mean + np.stack([noise(rho) for _ in range(4)]) for rho in (0.0, 0.5)}
    told = compare_slab(slices, 1, mean, draws)
    assert [(entry["image"], entry["rho"]) for entry in told] == [
        ("truth", None), ("mean", None), ("draw", 0.0), ("draw", 0.5)
    ]  # fmt: skip
    lags = [entry["sums"] and lag_one(np.array(entry["sums"])) for entry in told]
    assert lags[1] is None
    assert lags[0] == pytest.approx(0.6, abs=0.04)
    assert lags[2:] == pytest.approx([0, 0.5], abs=0.03)
    assert told[2]["variance"] == pytest.approx(50.5, rel=0.1)
    assert told[0]["coronal_ssim"] == pytest.approx(1)  # 12 slices are enough
    by_hand = [coronal_ssim(images[..., 1], v, brain, 255.0) for v in draws[0.5][..., 1]]
    assert told[3]["coronal_ssim"] == pytest.approx(np.mean(by_hand))
    still = {0.0: np.repeat(draws[0.0][:1], 4, axis=0)}
    assert compare_slab(slices, 1, mean, still) == []
    assert compare_slab(slices._replace(images=mean), 1, mean, draws) == []


def test_a_summary_pools_sums_and_means_scores():
    entry = {"modality": "t1", "gradient": 1.0, "gradient_error": 2.0}
    entry |= {"coronal_ssim": 0.5, "sums": None, "variance": None}
    records = []
    for subject, cross, wide in (("a", 0.2, 4.0), ("b", 0.8, 1.0)):
        facts = entry | {"subject": subject}
        records += [
            facts | {"image": "truth", "rho": None, "sums": [cross, 1.0, 1.0]},
            facts | {"image": "mean", "rho": None, "gradient": 3 * cross},
            facts | {"image": "draw", "rho": 0.0, "sums": [0, 1.0, 1.0], "variance": 1},
            facts | {"image": "draw", "rho": 0.5, "sums": [0.5, 1, 1.0], "variance": wide},
        ]
    rows = summaries(records)
    assert len(rows) == 8 and summaries([]) == []
    truth, mean, still, together = rows[:4]
    assert truth["lag_one"] == pytest.approx(0.5) and truth["sd_ratio"] is None
    assert mean["gradient"] == pytest.approx(1.5) and mean["lag_one"] is None
    assert still["sd_ratio"] == 1 and together["sd_ratio"] == pytest.approx(2.5**0.5)
    assert {row["modality"] for row in rows[4:]} == {through_plane.ALL}
