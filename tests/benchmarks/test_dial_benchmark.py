"""The dial: every sampler completes the same cases; scores by hand; the table is reused."""

import argparse
import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest

from ummcsgm.benchmarks import dial
from ummcsgm.evaluation.structure import BANDS, block_scores, power_by_band
from ummcsgm.inference.predictor import (
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.reporting import figures as plotting
from ummcsgm.reporting.figures import RESEARCH_ONLY
from ummcsgm.types import Estimate, InputError

pytest_plugins = ["tiny_study"]

STRUCTURE = ["crps", *(f"power {band}" for band in BANDS)]
STRUCTURE += [f"blocks of {size}" for size in (2, 4, 8)]
SAMPLERS = "mean,warm,heun,predictor_corrector,euler_maruyama"
# By hand, for 1 to 4 evaluations a draw: (steps, evaluations) of each sampler.
EXPECTED = {
    "mean": [(1, 1)],
    "warm": [(1, 2), (2, 3), (4, 5)],
    "heun": [(1, 1), (2, 3)],
    "predictor_corrector": [(1, 2), (2, 4)],
    "euler_maruyama": [(1, 1), (2, 2), (4, 4)],
}


@pytest.fixture(scope="module")
def comparison(study, quick_compile):
    flags = argparse.Namespace(workdir=study / "run", subjects=2, slices=2, draws=3)
    return dial.make_comparison(load_trained_model(study / "run"), flags)


@pytest.fixture
def printed(study, tmp_path, monkeypatch, capsys):
    """printed(flag, ...): the lines that the benchmark prints, of which one is JSON."""

    def run(*flags):
        fixed = ["--workdir", study / "run", "--output", tmp_path / "dial"]
        fixed += ["--subjects", 1, "--slices", 1, "--draws", 2]
        monkeypatch.setattr(sys, "argv", ["dial", *map(str, [*fixed, *flags])])
        dial.main()
        *lines, last = capsys.readouterr().out.splitlines()
        return lines, json.loads(last)

    return run


@pytest.fixture
def saved(monkeypatch):
    figures = []
    monkeypatch.setattr(plotting, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.slow
def test_the_table_has_every_sampler_and_its_evaluations(
    printed, tmp_path, monkeypatch, quick_compile
):
    monkeypatch.setattr(dial, "SLOW", ("euler_maruyama", 4))
    lines, report = printed("--steps", "1,2,4", "--samplers", SAMPLERS)
    rows = dial.read_rows(tmp_path / "dial" / "dial.csv")
    points = {}
    for row in rows:
        assert tuple(row) == tuple(dial.COLUMNS) and row["seconds"] > 0
        assert all(math.isfinite(row[name]) for name in dial.SCORES)
        points.setdefault(row["sampler"], []).append((row["steps"], row["evaluations"]))
    assert points == EXPECTED and len(lines) == len(rows)
    table = (tmp_path / "dial" / "dial.md").read_text().splitlines()
    assert len(table) == 2 + len(rows) and "mean of 2" in table[0]
    assert all(line.count("|") == table[0].count("|") for line in table)
    for row in rows:
        assert set(row["structure"]) == {"flair", "t1", "t1c", "t2"}
        assert all([*scores] == STRUCTURE for scores in row["structure"].values())
    assert report["fewest_steps_of_warm"] is None
    assert (tmp_path / "dial" / "dial.png").read_bytes()[:4] == b"\x89PNG"
    assert report["draws"] == 4 * 2 and report["warm_beside_algorithm1"]["steps"] == 2
    assert dial.compare(rows, 3) is None
    slow, quick = (
        next(row for row in rows if (row["sampler"], row["steps"]) == which)
        for which in (dial.SLOW, ("warm", 4))
    )
    compared = dial.compare(rows, 4)
    assert compared["times_faster"] == pytest.approx(slow["seconds"] / quick["seconds"], abs=0.051)
    assert 1 + compared["crps_percent"] / 100 == pytest.approx(
        quick["crps"] / slow["crps"], abs=1e-4
    )
    gain = quick["psnr_draw"] - slow["psnr_draw"]
    assert compared["psnr_draw_db"] == pytest.approx(gain, abs=1e-3)


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(printed, tmp_path, monkeypatch, capsys):
    path, points = tmp_path / "dial" / "dial.csv", []

    def measured(comparison, sampler, steps):
        points.append((sampler, steps))
        return dict.fromkeys(dial.COLUMNS, 1.5) | {
            "key": comparison.key,
            "sampler": sampler,
            "steps": steps,
            "evaluations": len(points),
            "structure": {"t1": dict.fromkeys(STRUCTURE, 1.5)},
        }

    monkeypatch.setattr(dial, "measure", measured)
    printed("--steps", "1,2", "--samplers", "ddim")
    before = dial.read_rows(path)
    printed("--steps", "1,2,3", "--samplers", "ddim")
    assert points == [("ddim", 1), ("ddim", 2), ("ddim", 3)]
    assert dial.read_rows(path)[:2] == before
    printed("--steps", "1", "--samplers", "ddim", "--draws", "3")
    assert points[3:] == [("ddim", 1)]
    assert len(dial.read_rows(path)) == 4
    assert len((tmp_path / "dial" / "dial.md").read_text().splitlines()) == 3
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        printed("--steps", "1", "--samplers", "ddim")
    assert "remove it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_key_depends_on_parameters_cases_draws_and_noise(comparison):
    same = dataclasses.replace(comparison, options=comparison.options)
    trained = dataclasses.replace(comparison.trained, digest="another")
    seeded = dataclasses.replace(comparison.options, seed=1)
    others = [
        dataclasses.replace(comparison, trained=trained),
        dataclasses.replace(comparison, cases=comparison.cases[1:]),
        dataclasses.replace(comparison, draws=4),
        dataclasses.replace(comparison, options=seeded),
    ]
    assert same.key == comparison.key
    assert len({comparison.key, *(other.key for other in others)}) == 5


def test_the_key_depends_on_the_code(monkeypatch):
    names = ("seed", "time_grid", "sigma_min", "warm_start_factor")
    options = types.SimpleNamespace(**dict.fromkeys(names, 1))
    trained = types.SimpleNamespace(digest="abc")
    comparison = dial.Comparison(trained, options, (), draws=2)
    before = comparison.key
    monkeypatch.setattr(dial, "code_digest", lambda: "other code", raising=False)
    assert comparison.key != before


@pytest.mark.slow
def test_every_case_completes_a_single_modality(comparison):
    cases = [(case.subject, case.channel, case.missing.tolist()) for case in comparison.cases]
    names = sorted({name for name, _, _ in cases})
    assert len(names) == 2 and [c for _, c, _ in cases] == [0, 1, 2, 3] * 2
    assert all(missing == np.eye(4)[c].astype(bool).tolist() for _, c, missing in cases)
    assert all(case.images.shape[0] == len(case.z) == 2 for case in comparison.cases)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["warm", "euler_maruyama"])
def test_draws_depend_on_their_addresses_alone_in_any_microbatch(comparison, sampler):
    draws = dial.make_draws(comparison, sampler, 2)()
    assert draws.shape == (16, 3, 16, 16, 4)
    options = dataclasses.replace(
        comparison.options, microbatch=3, algorithm1_steps=2, sampler_steps=2
    )
    other = dataclasses.replace(comparison, options=options)
    again = dial.make_draws(other, sampler, 2)()
    np.testing.assert_allclose(again, draws, rtol=1e-4, atol=1e-5)
    case = comparison.cases[5]
    missing = np.tile(case.missing, (2, 1))
    addresses = slice_addresses(case.subject, case.z, draw=2)[None]
    mean = make_mean_predictor(comparison.trained, options)(case.images, missing)
    sample = make_sampler(comparison.trained, sampler, options)
    (alone,) = sample(case.images, missing, addresses, mean)
    np.testing.assert_allclose(draws[10:12, 2], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(draws[:, 0] - draws[:, 1]).max() > 1e-3


@pytest.mark.slow
def test_the_mean_is_computed_once_and_has_no_spread(comparison):
    draws = dial.make_draws(comparison, "mean", 1)()
    assert np.array_equal(draws[:, 0], draws[:, 2])
    scores = dial.scores(comparison, draws)
    assert scores["spread_skill"] == 0
    assert scores["psnr_draw"] == pytest.approx(scores["psnr_mean"])


@pytest.mark.slow
def test_scores_are_of_the_brain_alone_and_as_by_hand(comparison):
    """Draws 3 and 1 grey levels off: the mean is 2 off, |error| - |x - x'| / 2 is 1."""
    comparison = dataclasses.replace(comparison, draws=2)
    rows = []
    for case in comparison.cases:
        drawn = np.full((len(case.z), 2, *case.images.shape[1:]), 1e3)
        for k, error in enumerate((3, 1)):
            right = case.images[..., case.channel] + error / case.grey_levels
            drawn[:, k, ..., case.channel] = np.where(case.brain, right, -1e3)
        rows.append(drawn)
    scores = dial.scores(comparison, np.concatenate(rows))
    assert scores["psnr_draw"] == pytest.approx(
        10 * math.log10(255**2 / 3), abs=1e-3
    )  # the mean of 20 log10(255 / 3) and 20 log10(255)
    assert scores["psnr_mean"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert scores["crps"] == pytest.approx(1, abs=1e-3)
    assert scores["spread_skill"] == pytest.approx(math.sqrt(3 / 2 * 2 / 4), abs=1e-3)


@pytest.mark.slow
def test_the_structure_of_draws_is_that_of_the_evaluation(comparison):
    """By hand for the first modality: the moments of its subjects are averaged first."""
    rng = np.random.default_rng(0)
    shape = (len(comparison.means), 3, *comparison.means.shape[1:])
    drawn = comparison.means[:, None] + 0.05 * rng.normal(size=shape)
    scores = dial.structure_scores(comparison, drawn)["flair"]
    cases, starts = comparison.cases, np.cumsum([0, *(len(c.z) for c in comparison.cases)])
    power, moments, crps = np.zeros((2, len(BANDS))), np.zeros(2), []
    for case, start, end in zip(cases, starts, starts[1:], strict=False):
        if case.channel == 0:
            draws, mean, truth = (
                case.grey_levels * values[..., 0].astype(float)
                for values in (
                    drawn[start:end].swapaxes(0, 1),
                    comparison.means[start:end],
                    case.images,
                )
            )
            power += power_by_band(draws, mean, truth, case.brain)
            blocks = block_scores(draws, mean, truth, case.brain, 2)
            moments += blocks["variance"], blocks["error"]
            crps.append(block_scores(draws, mean, truth, case.brain, 1)["crps"])
    assert scores["power 0-0.05"] == pytest.approx(power[0, 0] / power[1, 0])
    assert scores["power 0.3 up"] == pytest.approx(power[0, 4] / power[1, 4])
    assert scores["blocks of 2"] == pytest.approx(math.sqrt(4 / 3 * moments[0] / moments[1]))
    assert scores["crps"] == pytest.approx(np.mean(crps))


def test_the_fewest_steps_are_those_from_which_all_modalities_stay_near():
    def row(steps, sampler="warm", **values):
        scores = dict.fromkeys(STRUCTURE, 0.8) | values
        near = dict.fromkeys(STRUCTURE, 0.8)
        return {"sampler": sampler, "steps": steps, "structure": {"t1": near, "t2": scores}}

    rows = [
        row(2, crps=0.9),
        row(4, crps=0.83, **{"blocks of 8": 0.8 * 1.049}),
        row(8, crps=0.7),  # 4 was near by chance
        row(12, **{"power 0-0.05": 0.75}),
        row(60),
        row(100, crps=3.0),
        row(4, "heun", crps=9.0),
    ]
    fewest = dial.fewest_steps(rows[::-1])
    assert fewest["crps"] == 12 and fewest["blocks of 8"] == 2 and fewest["power 0-0.05"] == 60
    assert fewest["all"] == 60 and fewest["evaluations"] == 61
    assert dial.fewest_steps(rows[:3]) is None
    nothing = [row(n, **{"blocks of 8": float("nan")}) for n in (12, 60)]
    assert dial.fewest_steps(nothing)["all"] == 12  # no block counts in either


@pytest.mark.slow
def test_all_is_compiled_before_the_clock_starts(comparison, monkeypatch):
    events = []

    def make_mean(trained, scoring):
        def mean(images, missing):
            events.append(("mean", len(images)))
            return Estimate(np.array(images), np.array(images))

        return mean

    def make_sample(trained, sampler, scoring):
        def sample(images, missing, addresses, estimate):
            events.append((sampler, len(images), len(addresses), len(estimate.mean)))
            return iter([images] * len(addresses))

        return sample

    def clock():
        events.append("clock")
        return 2.5 * events.count("clock")

    monkeypatch.setattr(dial, "make_mean_predictor", make_mean)
    monkeypatch.setattr(dial, "make_sampler", make_sample)
    monkeypatch.setattr(dial.time, "perf_counter", clock)
    for name in ("scores", "structure_scores"):
        monkeypatch.setattr(dial, name, lambda comparison, drawn: {})
    row = dial.measure(comparison, "warm", 2)
    first = [("mean", 1), ("warm", 1, 1, 1)]
    last = [("mean", 16), ("warm", 16, 3, 16)]
    assert events == [*first, "clock", *last, "clock"]
    assert row["seconds"] == 2.5 and row["evaluations"] == 3


def test_longest_limits_all_but_uniform_grids():
    points = dial.list_points(["mean", "ddim", "heun", "euler_maruyama"], [1, 2, 9], 2)
    assert points == [
        ("mean", 1),
        ("ddim", 1),
        ("ddim", 2),
        ("heun", 1),
        *(("euler_maruyama", n) for n in (1, 2, 9)),
    ]
    with pytest.raises(InputError, match="magic"):
        dial.list_points(["magic"], [1], 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (("--subjects", 0), "no test subject"),
        (("--samplers", "magic"), "magic"),
        (("--steps", "1,two"), "two"),
    ],
)
def test_what_cannot_be_measured_is_one_line_of_error(printed, capsys, flags, message):
    with pytest.raises(SystemExit):
        printed(*flags)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.slow
def test_a_single_draw_is_refused_as_it_has_no_spread(printed, capsys):
    with pytest.raises(SystemExit):
        printed("--draws", 1)
    assert "at least 2" in capsys.readouterr().err


def test_the_plot_has_a_curve_a_sampler_and_the_mean_as_a_level(saved):
    curve = np.array([[1, 20.0, 21, 9], [10, 24, 26, 6], [100, 24.5, 26.5, 5.9]])
    plotting.write_dial("unused", {"mean": curve[:1], "warm": curve}, 8)
    crps, draw, mean = saved[0].axes
    for axes, column in ((crps, 3), (draw, 1), (mean, 2)):
        level, line = axes.lines
        assert set(level.get_ydata()) == {curve[0, column]}
        assert line.get_xydata().tolist() == curve[:, [0, column]].tolist()
        assert axes.get_xscale() == "log" and line.get_label() == "warm"
        low, high = axes.get_ylim()
        assert low < curve[:, column].min() and curve[:, column].max() < high
    assert "mean of 8" in mean.get_title()
    assert RESEARCH_ONLY.split()[0] in saved[0].texts[0].get_text()
