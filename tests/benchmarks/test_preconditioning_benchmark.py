"""R_k(tau) of a known law; curves and their table by hand; both arms train and are counted."""

import csv
import dataclasses

import numpy as np
import pytest
from learning_speed_checks import assert_ratios_of_a_known_law, measured, sees_nothing
from tiny_run import printed, tiny_config, write_config, write_subjects

from ummcsgm.benchmarks import preconditioning
from ummcsgm.reporting import figures as plotting
from ummcsgm.types import InputError


def test_ratios_of_a_denoiser_that_knows_the_law():
    assert_ratios_of_a_known_law()


def test_the_ratio_is_1_where_nothing_is_read_in_the_noisy_image():
    sums, questions = measured(sees_nothing)
    np.testing.assert_allclose(sums[..., 0], sums[..., 1], rtol=1e-6)
    asked = np.bincount(questions.channels) // len(preconditioning.LEVELS)
    assert asked.tolist() == [600, 599]  # the first slice has no second modality


def make_arm(name="mean", **changes):
    arm = preconditioning.Arm(name, None, None, None, None, 8, 32.0)
    return dataclasses.replace(arm, **changes)


def test_an_arm_counts_its_steps_and_their_seconds(monkeypatch):
    """A clock that runs a second a reading: the first segment ends after the second step."""
    monkeypatch.setattr(preconditioning.time, "perf_counter", iter(map(float, range(100))).__next__)
    taken = []

    def step(state, batch):
        taken.append(batch)
        return state + 1, {"loss": 0.0}

    arm = make_arm(step=step, state=0, batches=iter(range(100)))
    arm.train(1.5)
    assert taken == [0, 1] and arm.state == 2
    arm.train(0.5)
    assert taken == [0, 1, 2]
    counts = arm.counts()
    assert counts == {"seconds": 5.0, "steps": 3, "images": 24, "noise_levels": 96}


def test_rows_have_ratios_and_mean_errors():
    sums = np.zeros((2, 5, 2, 3))
    sums[0] = [[6.0, 12.0, 3.0], [1.0, 4.0, 2.0]]
    rows = preconditioning.make_rows(make_arm(), ("t1", "t2"), sums, np.array([640, 0]))
    assert len(rows) == 10 and {row["modality"] for row in rows} == {"t1"}
    voxels, blocks = rows[:2]
    assert tuple(voxels) == preconditioning.COLUMNS
    assert [voxels[name] for name in preconditioning.SCORES] == [0.5, 6 / 640, 12 / 640, 0.25]
    assert [blocks[name] for name in preconditioning.SCORES] == [0.25, 0.1, 0.4, 0.5]
    assert (blocks["block"], blocks["tau"]) == (8, 0.1)


def test_where_a_curve_first_falls_to_a_target():
    reached = preconditioning.first_reached
    assert reached([0, 10, 20], [1.0, 0.8, 0.4], 0.6) == pytest.approx(15)
    assert reached([0, 10, 20], [1.0, 0.5, 0.7], 0.6) == pytest.approx(8)
    assert reached([0, 10, 20], [0.5, 0.4, 0.3], 0.6) == 0
    assert reached([0, 10], [1.0, 0.9], 0.6) is None


def rows_of(arm, ratios):
    """Rows of one modality after 0, 10, 20 seconds."""
    return [
        dict(zip(preconditioning.COUNTS, (10.0 * k, k, 80 * k, 160 * k), strict=True))
        | {"arm": arm, "modality": "t1", "block": block, "tau": tau}
        | {"ratio": ratio, "error": ratio, "error_of_mean": 0.04, "reference": 0.2}
        for k, ratio in enumerate(ratios)
        for block in preconditioning.BLOCKS
        for tau in preconditioning.LEVELS
    ]


@pytest.fixture
def rows():
    return rows_of("edm", [2.0, 0.9, 0.8]) + rows_of("mean", [1.0, 0.6, 0.5])


def test_the_report_says_how_soon_the_mean_reaches_what_edm_ends_with(rows):
    report = preconditioning.summarise(rows)
    assert report["edm"]["R_8(1)"] == {"t1": 0.8} and report["mean"]["R_1(0.3)"] == {"t1": 0.5}
    assert report["share_of_edm"]["R_8(1)"]["t1"] == dict.fromkeys(preconditioning.COUNTS, 0.25)
    assert report["mean"]["rmse_of_mean"] == {"t1": 0.2} and report["edm"]["images"] == 160
    assert report["reference"]["R_8(0.3)"] == {"t1": 0.2}
    slower = rows_of("edm", [2.0, 0.9, 0.3]) + rows_of("mean", [1.0, 0.6, 0.5])
    shares = preconditioning.summarise(slower)["share_of_edm"]["R_8(1)"]["t1"]
    assert set(shares.values()) == {None}


def test_the_files_have_both_curves_of_each_panel(rows, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plotting, "_save", lambda figure, path: figures.append(figure))
    preconditioning.write_report(tmp_path, rows)
    panels = figures[0].axes
    assert [axes.get_ylabel() for axes in panels] == ["R_8(1)", "R_8(0.3)", "R_1(0.3)"]
    for axes in panels:
        curves = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 3}
        assert curves["edm"].get_xydata().tolist() == [[0, 2.0], [10, 0.9], [20, 0.8]]
        assert curves["mean"].get_xydata().tolist() == [[0, 1.0], [10, 0.6], [20, 0.5]]
    with (tmp_path / "preconditioning.csv").open() as file:
        assert len([*csv.DictReader(file)]) == len(rows)
    table = (tmp_path / "preconditioning.md").read_text().splitlines()
    assert table[0].startswith("edm: 20 seconds") and len(table) == 2 + 2 + 4
    assert len({line.count("|") for line in table[2:]}) == 1


def test_arms_differ_in_what_the_score_is_about_alone():
    configs = preconditioning.arm_configs(tiny_config(""))
    changed = {
        f"{part}.{key}"
        for part, fields in configs["edm"].to_dict().items()
        if isinstance(fields, dict)
        for key, value in fields.items()
        if configs["mean"][part][key] != value
    }
    assert changed == set(preconditioning.with_edm.__globals__["EDM"])
    with pytest.raises(InputError, match="preconditioning is 'edm'"):
        preconditioning.arm_configs(configs["edm"])


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capsys):
    """benchmark(config changes): the report of a short run on the tiny study's subjects."""

    def run(**changes):
        folder = write_subjects(tmp_path / "subjects")
        file = write_config(tmp_path / "tiny.py", tiny_config(folder, **changes))
        flags = ("--config", file, "--output", tmp_path / "out", "--seconds", 0.2)
        flags += ("--segments", 2, "--slices", 3)
        return printed(preconditioning, monkeypatch, capsys, *flags)

    return run


@pytest.mark.slow
def test_both_arms_are_trained_and_measured_in_turns(benchmark, tmp_path, quick_compile):
    report = benchmark(data__split=(3, 1, 1))
    for arm, levels in (("edm", 0.7), ("mean", 4)):
        part = report[arm]
        assert part["seconds"] >= 0.2 and part["steps"] >= 2
        assert part["images"] == 4 * part["steps"]
        assert part["noise_levels"] == pytest.approx(levels * part["images"], abs=1)
        assert set(part["R_8(1)"]) == {"flair", "t1", "t1c", "t2"}
        assert all(0 < value < np.inf for value in part["rmse_of_mean"].values())
    with (tmp_path / "out" / "preconditioning.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2 * 3 * 4 * 2 * 5
    first = [row for row in rows if row["steps"] == "0" and row["arm"] == "mean"]
    assert len(first) == 40 and all(np.isfinite(float(row["ratio"])) for row in rows)
    assert (tmp_path / "out" / "preconditioning.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "no validation subject"),
        ({"data__grid": (20, 16)}, "wanted multiples of 8"),
        ({"network__preconditioning": "edm"}, "set it to 'mean'"),
    ],
)
def test_what_cannot_be_measured_is_one_line_of_error(benchmark, capsys, changes, message):
    with pytest.raises(SystemExit):
        benchmark(**changes)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
