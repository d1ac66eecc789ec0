"""Draws whose spread and error are known beforehand, through the whole evaluation.

The network's mean errs by normal noise of sd ERROR of the peak and draws spread about
it by `ratio` times as much: at 1 they are calibrated.
"""

import csv
import json
import re
import zlib

import numpy as np
import pytest
from fake_network import FRACTION, PEAK, FakeNetwork, pick, split_of
from scipy.stats import t
from tiny_run import MODALITIES, files_under

from ummcsgm.evaluation import through_plane
from ummcsgm.evaluation.calibration import rank_histogram
from ummcsgm.evaluation.ensemble import EDGES, _flat_ranks_p, summaries
from ummcsgm.evaluation.structure import SCORES
from ummcsgm.reporting.evaluation_report import write_evaluation

pytest_plugins = ["fake_network"]
PNG = b"\x89PNG\r\n\x1a\n"
ERROR = 0.04  # of the peak
GREY = 255 * ERROR
ALL = {"evaluate__draws": 16, "evaluate__draw_subjects": 0, "evaluate__draw_slices": 0}

ONE_OF_TWO = {"evaluate__draw_subjects": 1, "evaluate__draw_slices": 2, "evaluate__slab_slices": 1}


def noise(images, missing, kind, addresses):
    """Standard normal where there is tissue to be drawn, by its purpose and place."""
    rows = [
        np.random.default_rng([kind, *map(int, address), *map(int, requested)])
        for address, requested in zip(addresses, missing, strict=True)
    ]
    values = np.stack([row.normal(size=images.shape[1:]) for row in rows])
    return np.float32(values * PEAK * ERROR) * missing[:, None, None] * (images > 0)


def posterior(ratio):
    """A stand-in whose draws spread ratio(subject) times the mean's error."""

    def fill(sampler, images, missing, addresses):
        addresses = np.asarray(addresses)
        mean = images + noise(images, missing, 1, addresses[:, :2])
        if sampler == "mean":
            return mean
        wide = np.array([ratio(address[0]) for address in addresses], np.float32)
        group = noise(images, missing, 2, addresses)
        return mean + wide[:, None, None, None] * group

    return fill


def calibrated(address):
    return 1


@pytest.fixture(scope="module")
def right(world, tmp_path_factory):
    """(`evaluation_results`, workdir) of calibrated draws, with a validation subject."""
    folder = tmp_path_factory.mktemp("right")
    network = FakeNetwork(world, posterior(calibrated), **ALL)
    return network.evaluate(folder, split=split_of(world)), folder / "run"


def check_numbers(result, wide):
    """What follows for normal draws of sd wide x ERROR about the mean."""
    k, rows = 16, summaries(result["records"])
    for name in MODALITIES:
        row = pick(rows, missing=name, modality=name)
        error = GREY**2 * (1 + wide**2 / k)
        skill = np.sqrt((k + 1) / k * (GREY * wide) ** 2 / error)
        away, apart = np.sqrt(1 + wide**2), np.sqrt(2) * wide
        crps = GREY * np.sqrt(2 / np.pi) * (away - apart / 2)
        assert row["mae_of_mean"] == pytest.approx(GREY * np.sqrt(2 / np.pi), rel=0.06)
        assert row["mse_of_mean"] == pytest.approx(GREY**2, rel=0.1)
        assert row["crps"] == pytest.approx(crps, rel=0.06)
        assert row["spread_skill"] == pytest.approx(skill, rel=0.06)
        held = 2 * t.cdf(skill * t.ppf(0.95, k - 1), k - 1) - 1
        assert row["coverage"] == pytest.approx(held, abs=0.02)
        assert row["subjects"] == 2 and row["draws"] == k and row["energy"] is None
        for band in row["structure"]["power"][3:]:  # of many frequencies
            assert band["ratio"] == pytest.approx(wide**2, rel=0.2)
        for block in row["structure"]["blocks"][:2]:
            assert block["spread_skill"] == pytest.approx(skill, rel=0.2)
            assert block["crps"] == pytest.approx(crps / block["size"], rel=0.2)
        voxels = row["structure"]["blocks"][0]
        assert voxels["spread_skill"] == pytest.approx(row["spread_skill"])
        assert voxels["coverage"] == pytest.approx(row["coverage"])
        assert voxels["crps"] == pytest.approx(row["crps"])
        assert voxels["crps_over_mae"] == pytest.approx(row["crps"] / row["mae_of_mean"])
        for count, measured, law in row["law"]:
            assert law == pytest.approx(GREY**2 * (1 + wide**2 / count), rel=0.1)
            assert measured == pytest.approx(law, rel=0.05)
        assert [count for count, *_ in row["law"]] == [1, 2, 4, 8, 16]


def test_calibrated_draws_are_found_calibrated(right):
    result, _ = right
    check_numbers(result, 1)
    rows = result["facts"]["calibration"]["summaries"]
    assert len(rows) == 4
    for row in rows:
        assert row["coverage_of_ranks"] == pytest.approx(0.9, abs=0.02)
    counts = sum(np.array(r["ranks"]) for r in result["records"])
    assert len(counts) == 17 and np.ptp(counts / counts.mean()) < 0.35
    sums = sum(np.array(r["reliability"]) for r in result["records"])
    assert sums.shape == (len(EDGES) + 1, 3)
    assert sums[:, 1].sum() == pytest.approx(sums[:, 2].sum(), rel=0.06)
    assert sums[:, 0].sum() == 2 * sum(r["voxels"] for r in result["records"])


@pytest.mark.parametrize("ratio", [0.5, 2])
def test_a_wrong_spread_is_reported_as_drawn(world, tmp_path, ratio):
    """Also where validation subjects tell how wrong it is."""
    network = FakeNetwork(world, posterior(lambda address: ratio), **ALL)
    check_numbers(network.evaluate(tmp_path, split=split_of(world)), ratio)


def test_what_validation_subjects_say_of_draws_is_of_them_alone(world, tmp_path):
    split = split_of(world)
    (inside,) = [zlib.crc32(name.encode()) for name in split["validation"]]
    requested = posterior(lambda address: 0.5 if address == inside else 1)
    network = FakeNetwork(world, requested, **ALL)
    result = network.evaluate(tmp_path, split=split)
    check_numbers(result, 1)
    subjects = {address[0] for _, _, addresses in network.calls for address in addresses}
    names = split["test"] + split["validation"]
    assert subjects == {zlib.crc32(name.encode()) for name in names}
    found = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert found["rho"] == result["facts"]["coherence"]["rho"]
    assert found["subjects"] == split["validation"] and found["sampler"] == "warm"
    assert (found["step"], found["parameters_sha256"]) == (7, "digest")
    assert (found["draws"], found["sampler_steps"]) == (16, 2)
    assert set(found["structure"]) == set(MODALITIES)
    for structure in found["structure"].values():  # of the half spread of this subject
        assert structure["blocks"][0]["spread_skill"] == pytest.approx(0.5, rel=0.06)
        assert structure["power"][-1]["ratio"] == pytest.approx(0.25, rel=0.1)


def test_without_validation_there_is_no_calibration(world, tmp_path):
    network = FakeNetwork(world, posterior(calibrated))
    earlier = tmp_path / "run" / "calibration.json"  # of another split
    earlier.parent.mkdir()
    earlier.write_text("{}")
    result = network.evaluate(tmp_path)
    assert not earlier.exists()
    assert list(result["facts"]["coherence"]) == ["summaries"] and result["records"]
    write_evaluation(result, tmp_path / "out")
    assert "no validation subject" in (tmp_path / "out" / "coherence.md").read_text()


def test_one_draw_the_mean_of_draws_and_the_mean_are_scored_on_their_slices(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(through_plane, "measure_slab", lambda *arguments: ([], {}))
    network = FakeNetwork(
        world,
        posterior(calibrated),
        **ALL | {"evaluate__draw_subjects": 1, "evaluate__draw_slices": 2},
    )
    result = network.evaluate(tmp_path)
    rows = {}
    for method in ("warm", "warm_mean", "mean_of_draw_slices"):
        group = [row for row in result["subjects"] if row["method"] == method]
        assert len(group) == 4 and {row["slices"] for row in group} == {2}
        rows[method] = np.mean([row["mae"] for row in group])
    usual = np.sqrt(2 / np.pi) * GREY * FRACTION  # clipped at both ends: less
    assert 0.6 * usual < rows["mean_of_draw_slices"] < rows["warm_mean"] < rows["warm"]
    assert rows["warm"] < 1.05 * np.sqrt(2) * usual
    assert {row["method"] for row in result["rows"]} >= {"warm", "mean", "algorithm1"}
    assert "warm_mean" not in {row["method"] for row in result["rows"]}
    assert len(result["records"]) == 4 and {r["slices"] for r in result["records"]} == {2}
    requested = {
        tuple(address)
        for sampler, _, addresses in network.calls
        if sampler == "warm"
        for address in addresses.tolist()
    }
    assert len({(z, k) for _, z, k in requested if k}) == 2 * 15  # draw 0 is shown of others too
    assert {k for _, _, k in requested} == set(range(16))
    warm = result["facts"]["warm"]
    assert (warm["subjects"], warm["slices"]) == (1, 2)


def test_several_missing_have_an_energy_score_of_them_together(world, tmp_path):
    network = FakeNetwork(world, posterior(calibrated), **ALL)
    result = network.evaluate(tmp_path, every=True, split=split_of(world))
    rows = result["facts"]["calibration"]["summaries"]
    assert len({row["missing"] for row in rows}) == 14
    for row in rows:
        if row["missing"].count("+") == 1:  # half of a Rayleigh law's mean
            expected = GREY * np.sqrt(np.pi) / 2
            assert row["energy"] == pytest.approx(expected, rel=0.05)
        assert (row["energy"] is None) == (row["missing"] == row["modality"])
    write_evaluation(result, tmp_path / "out")
    assert "energy score" in (tmp_path / "out" / "calibration.md").read_text()


def test_curves_are_of_patterns_with_one_modality_missing(right):
    result, _ = right
    curves = result["curves"]["ranks"]
    assert list(curves) == [*MODALITIES]
    for name, curve in curves.items():
        records = [r for r in result["records"] if r["missing"] == r["modality"] == name]
        counts = np.sum([r["ranks"] for r in records], axis=0)
        np.testing.assert_allclose(curve["measured"], counts / counts.sum())
        assert np.all(curve["low"] <= curve["high"])
    curves = result["curves"]["reliability"]
    assert list(curves) == [*MODALITIES]
    for curve in curves.values():
        assert len(curve["expected"]) == len(curve["measured"]) > 0
    assert result["curves"]["predicted"] == {}


@pytest.mark.parametrize("change", [{"sampler_steps": 3}, {"draw_slices": 3}])
def test_draws_with_other_options_are_computed_again(world, tmp_path, change):
    network = FakeNetwork(world, posterior(calibrated), **ALL)
    network.evaluate(tmp_path, split=split_of(world))
    changes = ALL | {f"evaluate__{key}": value for key, value in change.items()}
    network = FakeNetwork(world, lambda sampler, images, *rest: images, **changes)
    records = network.evaluate(tmp_path)["records"]
    assert records and all(record["variance"] == 0 for record in records)


def test_files_hold_the_numbers_and_the_pictures(right, tmp_path):
    result, _ = right
    folder = tmp_path / "out"
    write_evaluation(result, folder)
    with (folder / "calibration.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 4
    for line in lines:
        requested = {"subject": line["subject"], "modality": line["modality"]}
        found = pick(result["records"], **requested)
        assert float(line["crps"]) == found["crps"]
        assert float(line["coverage"]) == found["coverage"]
    page = re.sub(" +", " ", (folder / "calibration.md").read_text())
    for name in MODALITIES:
        row = pick(result["facts"]["calibration"]["summaries"], modality=name)
        assert (
            f"| {name} | {row['crps']:.3f} | {row['mae_of_mean']:.3f} "
            f"| {row['spread_skill']:.3f} (" in page
        )
        assert f"{row['law'][0][1]:.2f} / {row['law'][0][2]:.2f}" in page
    content = json.loads((folder / "metrics.json").read_text())
    assert len(content["facts"]["calibration"]["summaries"]) == 4
    with (folder / "structure.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * (5 + 4 * 5)
    for row in result["facts"]["calibration"]["summaries"]:
        band, block = row["structure"]["power"][3], row["structure"]["blocks"][1]
        for values, score, scale in ((band, "ratio", "0.2-0.3"), (block, "spread_skill", "2")):
            part = "power" if values is band else "blocks"
            requested = {"modality": row["modality"], "score": f"{part}_{score}"}
            line = pick(lines, **requested, scale=scale)
            assert float(line["value"]) == values[score] and line["subjects"] == "2"
            assert float(line["low"]) == values[f"{score}_low"]
            assert f"{values[score]:.2f} ({values[f'{score}_low']:.2f} to" in page
    assert "## Structure of the draws" in page
    files = files_under(folder)
    for name in ("ranks", "reliability", "uncertainty", "structure"):
        assert files[f"{name}.png"].startswith(PNG)


def test_a_predicted_variance_is_set_beside_the_error_of_the_mean(world, tmp_path):
    """Four times the error where x is even, a quarter of it where odd."""

    def variance(mean):
        known = np.where(np.arange(mean.shape[2]) % 2, 0.25, 4)[:, None]
        return np.float32(known * (PEAK * ERROR) ** 2) * np.ones_like(mean)

    network = FakeNetwork(world, posterior(calibrated), variance=variance, **ALL)
    result = network.evaluate(tmp_path, split=split_of(world))
    whole = np.sqrt((4 + 0.25) / 2)
    rows = result["facts"]["calibration"]["predicted"]
    assert [(r["missing"], r["modality"]) for r in rows] == [(m, m) for m in MODALITIES]
    for row in rows:
        assert row["ratio"] == pytest.approx(whole, rel=0.06) and row["subjects"] == 2
        assert row["error"] == pytest.approx(GREY**2, rel=0.1)
    found = [r["predicted"]["reliability"] for r in result["records"]]
    sums = np.sum(found, axis=0)
    assert sums[:, 0].sum() == sum(r["voxels"] for r in result["records"])
    bins = sums[sums[:, 0] > 0]
    bins = bins[:, 1:] / bins[:, :1] / GREY**2
    np.testing.assert_allclose(bins, [[0.25, 1], [4, 1]], rtol=0.06)
    write_evaluation(result, tmp_path / "out")
    page = re.sub(" +", " ", (tmp_path / "out" / "calibration.md").read_text())
    for row in rows:
        name, sd, error = row["modality"], row["variance"] ** 0.5, row["error"] ** 0.5
        line = f"| {name} | {name} | {sd:.2f} | {error:.2f} | {row['ratio']:.3f} ("
        assert line in page
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["facts"]["calibration"]["predicted"] == rows
    files = files_under(tmp_path / "out")
    assert files["reliability_predicted.png"].startswith(PNG)


def test_without_a_head_nothing_is_said_of_its_variance(right, tmp_path):
    result, _ = right
    assert result["facts"]["calibration"]["predicted"] == []
    write_evaluation(result, tmp_path / "out")
    assert "redicted variance" not in (tmp_path / "out" / "calibration.md").read_text()
    assert "reliability_predicted.png" not in files_under(tmp_path / "out")


def test_pictures_are_of_one_slice_with_its_draws(world, tmp_path):
    changes = ALL | {"evaluate__draws": 4}
    network = FakeNetwork(world, posterior(calibrated), **changes)
    result = network.evaluate(tmp_path)
    assert list(result["pictures"]) == list(result["panels"])
    for kinds in result["pictures"].values():
        assert kinds["draws"].shape == (4, 3, 16, 16)
        tissue = kinds["truth"] > 0
        error = (kinds["mean"] - kinds["truth"])[tissue]
        assert np.sqrt(np.mean(np.square(error))) == pytest.approx(
            GREY * np.sqrt(1 + 1 / 4), rel=0.1
        )
        assert np.sqrt(np.mean(np.square(kinds["sd"][tissue]))) == pytest.approx(
            GREY * np.sqrt(1 + 1 / 4), rel=0.05
        )
        assert not kinds["sd"][~tissue].any()


def test_an_unlike_pair_is_pooled_over_subjects_before_the_ratio():
    law, power = [[1, 2.0, 2.0]], {"draws": [1.0] * 5, "truth": [2.0] * 5}
    block = {"size": 1, "blocks": 0} | dict.fromkeys(SCORES)
    numbers = dict.fromkeys(("crps", "coverage", "coverage_of_ranks"), 0.5) | {"ranks": [1, 1, 1]}
    numbers |= {"structure": {"power": power, "blocks": [block]}}
    records = [
        {
            "missing": "t1",
            "modality": "t1",
            "draws": 2,
            "mae_of_mean": 1.0,
            "mse_of_mean": 2.0,
        }
        | numbers
        | {"variance": variance, "error": error, "energy": None, "law": law}
        for variance, error in ((1.0, 1.0), (5.0, 11.0))
    ]
    (row,) = summaries(records)
    assert row["spread_skill"] == pytest.approx(np.sqrt(1.5 * 3 / 6))
    assert row["crps"] == 0.5 and row["law"] == law and row["subjects"] == 2


@pytest.mark.parametrize("spread, flat", [(1.0, True), (0.7, False)])
def test_summaries_say_whether_ranks_are_flat(spread, flat):
    generator = np.random.default_rng(0)
    counts = np.array(
        [
            rank_histogram(
                generator, spread * generator.normal(size=(8, 500)), generator.normal(size=500)
            )
            for _ in range(12)
        ]
    )
    assert (_flat_ranks_p(counts) > 0.01) == flat
    assert _flat_ranks_p(counts[:3]) is None
