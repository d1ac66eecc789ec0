"""The dial: the same questions to every sampler, scored as by hand, and kept."""

import argparse
import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from ummcsgm.benchmarks import dial
from ummcsgm.inference.predictor import (
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.reporting import plots
from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.types import Estimate, InputError

pytest_plugins = ["tiny_study"]

SAMPLERS = "mean,warm,heun,predictor_corrector,euler_maruyama"
# By hand, of 1 to 4 evaluations a draw: (steps, evaluations) of each sampler.
EXPECTED = {
    "mean": [(1, 1)],
    "warm": [(1, 2), (2, 3), (4, 5)],
    "heun": [(1, 1), (2, 3)],
    "predictor_corrector": [(1, 2), (2, 4)],
    "euler_maruyama": [(1, 1), (2, 2), (4, 4)],
}


@pytest.fixture(scope="module")
def contest(study, quick_compile):
    flags = argparse.Namespace(workdir=study / "run", subjects=2, slices=2, draws=3)
    return dial.set_contest(load_trained_model(study / "run"), flags)


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
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_the_table_has_every_sampler_and_its_evaluations(
    printed, tmp_path, monkeypatch, quick_compile
):
    monkeypatch.setattr(dial, "SLOW", ("euler_maruyama", 4))
    lines, report = printed("--steps", "1,2,4", "--samplers", SAMPLERS)
    rows = dial.read_rows(tmp_path / "dial" / "dial.csv")
    found = {}
    for row in rows:
        assert tuple(row) == tuple(dial.COLUMNS) and row["seconds"] > 0
        assert all(math.isfinite(row[name]) for name in dial.SCORES)
        found.setdefault(row["sampler"], []).append((row["steps"], row["evaluations"]))
    assert found == EXPECTED and len(lines) == len(rows)
    table = (tmp_path / "dial" / "dial.md").read_text().splitlines()
    assert len(table) == 2 + len(rows) and "mean of 2" in table[0]
    assert all(line.count("|") == table[0].count("|") for line in table)
    assert (tmp_path / "dial" / "dial.png").read_bytes()[:4] == b"\x89PNG"
    assert report["draws"] == 4 * 2 and report["warm_beside_algorithm1"] is None
    monkeypatch.setattr(dial, "QUICK", ("warm", 4))
    slow, quick = (
        next(row for row in rows if (row["sampler"], row["steps"]) == which)
        for which in (dial.SLOW, dial.QUICK)
    )
    compared = dial.compare(rows)
    assert compared["times_faster"] == pytest.approx(slow["seconds"] / quick["seconds"], abs=0.051)
    assert 1 + compared["crps_percent"] / 100 == pytest.approx(
        quick["crps"] / slow["crps"], abs=1e-4
    )
    gain = quick["psnr_draw"] - slow["psnr_draw"]
    assert compared["psnr_draw_db"] == pytest.approx(gain, abs=1e-3)


def test_what_was_measured_is_not_measured_again(printed, tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "dial" / "dial.csv", []

    def measured(contest, sampler, steps):
        asked.append((sampler, steps))
        return dict.fromkeys(dial.COLUMNS, 1.5) | {
            "key": contest.key,
            "sampler": sampler,
            "steps": steps,
            "evaluations": len(asked),
        }

    monkeypatch.setattr(dial, "measure", measured)
    printed("--steps", "1,2", "--samplers", "ddim")
    before = dial.read_rows(path)
    printed("--steps", "1,2,3", "--samplers", "ddim")
    assert asked == [("ddim", 1), ("ddim", 2), ("ddim", 3)]
    assert dial.read_rows(path)[:2] == before
    printed("--steps", "1", "--samplers", "ddim", "--draws", "3")
    assert asked[3:] == [("ddim", 1)]
    assert len(dial.read_rows(path)) == 4
    assert len((tmp_path / "dial" / "dial.md").read_text().splitlines()) == 3
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        printed("--steps", "1", "--samplers", "ddim")
    assert "remove it" in capsys.readouterr().err


def test_the_key_is_that_of_weights_questions_and_draws(contest):
    same = dataclasses.replace(contest, scoring=contest.scoring)
    trained = dataclasses.replace(contest.trained, digest="another")
    seeded = dataclasses.replace(contest.scoring, seed=1)
    others = [
        dataclasses.replace(contest, trained=trained),
        dataclasses.replace(contest, questions=contest.questions[1:]),
        dataclasses.replace(contest, draws=4),
        dataclasses.replace(contest, scoring=seeded),
    ]
    assert same.key == contest.key
    assert len({contest.key, *(one.key for one in others)}) == 5


def test_one_modality_is_asked_for_at_a_time(contest):
    asked = [(q.subject, q.channel, q.missing.tolist()) for q in contest.questions]
    names = sorted({name for name, _, _ in asked})
    assert len(names) == 2 and [c for _, c, _ in asked] == [0, 1, 2, 3] * 2
    assert all(missing == np.eye(4)[c].astype(bool).tolist() for _, c, missing in asked)
    assert all(q.images.shape[0] == len(q.z) == 2 for q in contest.questions)


@pytest.mark.parametrize("sampler", ["warm", "euler_maruyama"])
def test_draws_are_the_answers_to_their_addresses_in_any_microbatch(contest, sampler):
    draws = dial.make_draws(contest, sampler, 2)()
    assert draws.shape == (16, 3, 16, 16, 4)
    scoring = dataclasses.replace(
        contest.scoring, microbatch=3, algorithm1_steps=2, sampler_steps=2
    )
    other = dataclasses.replace(contest, scoring=scoring)
    again = dial.make_draws(other, sampler, 2)()
    np.testing.assert_allclose(again, draws, rtol=1e-4, atol=1e-5)
    question = contest.questions[5]
    missing = np.tile(question.missing, (2, 1))
    addresses = slice_addresses(question.subject, question.z, draw=2)[None]
    mean = make_mean_predictor(contest.trained, scoring)(question.images, missing)
    sample = make_sampler(contest.trained, sampler, scoring)
    (alone,) = sample(question.images, missing, addresses, mean)
    np.testing.assert_allclose(draws[10:12, 2], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(draws[:, 0] - draws[:, 1]).max() > 1e-3


def test_the_mean_is_answered_once_and_has_no_spread(contest):
    draws = dial.make_draws(contest, "mean", 1)()
    assert np.array_equal(draws[:, 0], draws[:, 2])
    found = dial.scores(contest, draws)
    assert found["spread_skill"] == 0
    assert found["psnr_draw"] == pytest.approx(found["psnr_mean"])


def test_scores_are_those_by_hand_and_of_the_brain_alone(contest):
    """Draws 3 and 1 grey levels off: the mean is 2 off, |error| - |x - x'| / 2 is 1."""
    contest = dataclasses.replace(contest, draws=2)
    rows = []
    for q in contest.questions:
        drawn = np.full((len(q.z), 2, *q.images.shape[1:]), 1e3)
        for k, error in enumerate((3, 1)):
            right = q.images[..., q.channel] + error / q.grey
            drawn[:, k, ..., q.channel] = np.where(q.brain, right, -1e3)
        rows.append(drawn)
    found = dial.scores(contest, np.concatenate(rows))
    assert found["psnr_draw"] == pytest.approx(
        10 * math.log10(255**2 / 3), abs=1e-3
    )  # the mean of 20 log10(255 / 3) and 20 log10(255)
    assert found["psnr_mean"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert found["crps"] == pytest.approx(1, abs=1e-3)
    assert found["spread_skill"] == pytest.approx(math.sqrt(3 / 2 * 2 / 4), abs=1e-3)


def test_what_is_compiled_is_so_before_the_clock_runs(contest, monkeypatch):
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
    monkeypatch.setattr(dial, "scores", lambda contest, drawn: {})
    row = dial.measure(contest, "warm", 2)
    first = [("mean", 1), ("warm", 1, 1, 1)]
    last = [("mean", 16), ("warm", 16, 3, 16)]
    assert events == [*first, "clock", *last, "clock"]
    assert row["seconds"] == 2.5 and row["evaluations"] == 3


def test_the_longest_ends_all_but_uniform_grids():
    wanted = dial.points(["mean", "ddim", "heun", "euler_maruyama"], [1, 2, 9], 2)
    assert wanted == [
        ("mean", 1),
        ("ddim", 1),
        ("ddim", 2),
        ("heun", 1),
        *(("euler_maruyama", n) for n in (1, 2, 9)),
    ]
    with pytest.raises(InputError, match="magic"):
        dial.points(["magic"], [1], 2)


@pytest.mark.parametrize(
    "words, why",
    [
        (("--subjects", 0), "no test subject"),
        (("--samplers", "magic"), "magic"),
        (("--steps", "1,two"), "two"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(printed, capsys, words, why):
    with pytest.raises(SystemExit):
        printed(*words)
    said = capsys.readouterr().err
    assert why in said and "Traceback" not in said


def test_one_draw_has_no_spread(printed, capsys):
    with pytest.raises(SystemExit):
        printed("--draws", 1)
    assert "at least 2" in capsys.readouterr().err


def test_the_plot_has_a_curve_a_sampler_and_the_mean_as_a_level(saved):
    curve = np.array([[1, 20.0, 21, 9], [10, 24, 26, 6], [100, 24.5, 26.5, 5.9]])
    plots.write_dial("unused", {"mean": curve[:1], "warm": curve}, 8)
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
