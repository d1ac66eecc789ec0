"""Power by band and block means of fields whose law is known, and of draws of a wrong law."""

import numpy as np
import pytest
import structure_checks as checks
from structure_checks import (
    DISC,
    GRID,
    correlated,
    law_of_truth,
    mean_block_variance,
    summary_of,
    white_noise,
)
from tiny_run import tiny_config

from ummcsgm.config.build import check_config
from ummcsgm.evaluation.calibration import coverage, crps_fair, spread_and_error, within
from ummcsgm.evaluation.structure import (
    BAND_EDGES,
    BANDS,
    SUMMARIES,
    bands,
    block_means,
    block_scores,
    measure_structure,
    power_by_band,
    summarise_structure,
)
from ummcsgm.types import InputError


def test_the_power_of_a_band_is_the_integral_of_the_spectrum():
    checks.assert_power_of_a_spectrum()


def test_within_a_brain_it_is_that_of_the_masked_field():
    checks.assert_power_within_the_brain()


def test_the_variance_of_block_means_is_that_of_the_covariance():
    checks.assert_variance_of_block_means()


def test_block_means_by_hand():
    checks.assert_blocks_by_hand()


@pytest.mark.parametrize("count", [2, 8])
def test_draws_of_the_truths_law_pass_at_any_number_of_draws(count):
    checks.assert_right_law_passes(count)


def test_they_pass_about_a_wrong_mean_too():
    checks.assert_right_law_passes_about_a_wrong_mean()


def test_white_noise_of_the_same_variance_fails_though_its_voxels_are_calibrated():
    found = summary_of(white_noise, 8)
    low, *_, high = found["power"]
    assert low["ratio_high"] < 0.1 and high["ratio_low"] > 3
    for row in found["blocks"]:
        noise, true = mean_block_variance(row["size"], 0.0), mean_block_variance(row["size"], 0.9)
        checks.assert_row(row, spread_skill=np.sqrt((1 + 1 / 8) * noise / (true + noise / 8)))
    skill = {row["size"]: row["spread_skill"] for row in found["blocks"]}
    assert skill[1] == pytest.approx(1, abs=0.03) and skill[4] < 0.4 and skill[8] < 0.25
    right = summary_of(law_of_truth, 8)
    for row, other in zip(found["blocks"][1:], right["blocks"][1:], strict=True):
        assert row["crps_over_mae"] > other["crps_over_mae_high"]
        assert row["coverage_high"] < other["coverage_low"]


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_wrong_spread_is_seen_in_every_band_and_block(factor):
    found = summary_of(lambda *shape: factor * law_of_truth(*shape), 8)
    for row in found["power"]:
        checks.assert_row(row, ratio=factor**2)
    for row in found["blocks"]:
        expected = factor * np.sqrt((1 + 1 / 8) / (1 + factor**2 / 8))
        checks.assert_row(row, spread_skill=expected)


def test_one_draw_repeated_has_the_right_power_and_no_spread():
    """Power is blind to it, blocks are not."""
    found = summary_of(lambda rng, count, s: np.tile(law_of_truth(rng, 1, s), (count, 1, 1, 1)), 4)
    checks.assert_row(found["power"][0], ratio=1.0)
    assert all(row["spread_skill"] < 1e-6 for row in found["blocks"])


def test_frequencies_are_in_the_band_of_their_radius_and_none_is_left_out():
    assert bands(1, 10).tolist() == [[0, 2, 3, 4, 4, 4, 4, 4, 3, 2]]
    assert bands(10, 2).tolist()[:4] == [[0, 4], [2, 4], [3, 4], [4, 4]]
    for band in range(len(BANDS)):
        np.testing.assert_array_equal(bands(*GRID) == band, checks.inside(band))
    assert [name.split("-")[0] for name in BANDS[1:]] == [
        *(f"{edge:g}" for edge in BAND_EDGES[:-1]),
        f"{BAND_EDGES[-1]:g} up",
    ]
    (draws, _) = power_by_band(
        np.stack([checkerboard := np.indices((1, *GRID)).sum(0) % 2 * 2.0 - 1] * 2),
        np.zeros((1, *GRID)),
        checkerboard,
        np.ones((1, *GRID), bool),
    )
    np.testing.assert_allclose(draws, [0, 0, 0, 0, DISC.size], atol=1e-9)


def test_blocks_of_one_pixel_are_voxels():
    rng = np.random.default_rng(0)
    draws, truth, mean = correlated(rng, 0.5, 4, 2), correlated(rng, 0.5, 2), rng.normal(size=GRID)
    brain = np.stack([DISC, np.roll(DISC, 3, 0)])
    found = block_scores(draws, np.stack([mean, mean]), truth, brain, 1)
    drawn, true = within(brain, draws, truth)
    assert found["blocks"] == true.size == brain.sum()
    np.testing.assert_allclose([found["variance"], found["error"]], spread_and_error(drawn, true))
    assert found["crps"] == pytest.approx(crps_fair(drawn, true).mean())
    assert found["coverage"] == pytest.approx(coverage(drawn, true, 0.9).mean())
    miss = (mean - truth)[brain]
    assert found["mae_of_mean"] == pytest.approx(np.abs(miss).mean())
    assert found["mse_of_mean"] == pytest.approx(np.square(miss).mean())


def test_a_block_as_large_as_the_brain_is_its_mean():
    truth = np.random.default_rng(0).normal(size=(3, *GRID))
    (first, *_, last) = block_means(truth, np.ones(truth.shape, bool), 40)[::2]
    assert first == pytest.approx(truth[0, :40].mean()) and last == pytest.approx(
        truth[2, :40].mean()
    )


def part(drawn, true, blocks):
    """What `measure_structure` gives: power, and (number, variance, error, ...) of one size."""
    names = ("blocks", "variance", "error", "coverage", "crps", "mae_of_mean", "mse_of_mean")
    power = {"draws": [drawn] * 5, "truth": [true] * 5}
    return {"power": power, "blocks": [{"size": 8} | dict(zip(names, blocks, strict=True))]}


def test_sums_over_subjects_come_before_ratios():
    parts = [
        part(1.0, 4.0, (3, 1.0, 1.0, 0.5, 1.0, 4.0, 9.0)),
        part(5.0, 4.0, (9, 5.0, 11.0, 1.0, 3.0, 4.0, 9.0)),
        part(0.0, 0.0, (0, *[None] * 6)),
    ]
    found = summarise_structure(6 * parts, 2)
    assert [row["ratio"] for row in found["power"]] == [6 / 8] * 5
    assert [row["band"] for row in found["power"]] == list(BANDS)
    (row,) = found["blocks"]
    assert (row["size"], row["subjects"]) == (8, 12)
    assert row["spread_skill"] == pytest.approx(np.sqrt(1.5 * 6 / 12))
    assert (row["coverage"], row["crps"], row["crps_over_mae"]) == (0.75, 2.0, 0.5)
    for name in SUMMARIES:
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_where_nothing_counts_there_is_no_number():
    """No draw varies, nothing errs, and no block is brain by half."""
    brain = np.zeros((1, *GRID), bool)
    brain[0, 20, 10:13] = True
    flat = np.zeros((1, *GRID))
    one = measure_structure(np.stack([flat, flat]), flat, flat, brain, (1, 4))
    assert [row["blocks"] for row in one["blocks"]] == [3, 0]
    assert one["blocks"][1]["crps"] is None
    found = summarise_structure([one, one], 2)
    assert all(np.isnan(row["ratio"]) for row in found["power"])
    single, none = found["blocks"]
    assert single["coverage"] == 1 and single["crps"] == 0 and np.isnan(single["spread_skill"])
    assert none["subjects"] == 0 and all(np.isnan(none[name]) for name in SUMMARIES)


@pytest.mark.parametrize(
    "sizes, words",
    [
        (
            (1, 17),
            ["a block of 17 pixels does not fit", r"config.data.grid, \(16, 16\)", "most 16"],
        ),
        ((2, 2), [r"\(2, 2\)", "twice"]),
        ((), ["length of at least 1"]),
        ((0,), [r"block_sizes\[0\]", "at least 1"]),
    ],
)
def test_sizes_that_do_not_fit_the_grid_are_refused(sizes, words):
    with pytest.raises(InputError, match=".*".join(words)) as error:
        check_config(tiny_config("", evaluate__block_sizes=sizes), 1)
    assert "config.evaluate.block_sizes" in str(error.value)
