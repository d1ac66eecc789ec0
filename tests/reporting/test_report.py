"""Tables read back cell by cell, and a figure read back pixel by pixel."""

import csv
import os

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from ummcsgm.reporting import figure, report
from ummcsgm.reporting.figure import Panels, write_figure
from ummcsgm.reporting.report import method_labels, write_csv, write_table_markdown
from ummcsgm.types import InputError

COLUMNS = ["method", "missing", "modality", "profile"]
COLUMNS += ["metric", "mean", "sd", "subjects"]
LABELS = method_labels(1000, 12)


def _row(method, missing, modality, metric, mean, sd=0.5, profile="p", subjects=12):
    values = method, missing, modality, profile, metric, mean, sd, subjects
    return dict(zip(COLUMNS, values, strict=True))


def _rows(method, missing, modality, psnr, ssim, wang, mae, **more):
    means = {"psnr": psnr, "ssim_global": ssim, "ssim_wang": wang, "mae": mae}
    return [_row(method, missing, modality, k, v, **more) for k, v in means.items()]


def _table(path, number):
    """The cells of a table by (first cells up to the method's name) and column."""
    blocks = [b for b in path.read_text().split("\n\n") if b.startswith("|")]
    lines = [line.strip("| ").split(" | ") for line in blocks[number].splitlines()]
    head, start = lines[0], lines[0].index("method") + 1
    return {
        tuple(line[:start]): dict(zip(head[start:], line[start:], strict=True))
        for line in lines[2:]
    }


def test_csv_gives_back_every_number_in_full(tmp_path):
    rows = _rows("ridge", "T1", "T1", 1 / 3, np.float64(0.1), 2e-17, 5.0, sd=np.pi)
    write_csv(tmp_path / "table.csv", rows, COLUMNS)
    with open(tmp_path / "table.csv", newline="") as file:
        back = list(csv.reader(file))
    assert back[0] == COLUMNS
    for row, line in zip(rows, back[1:], strict=True):
        assert line[:5] == [row[column] for column in COLUMNS[:5]]
        assert [float(x) for x in line[5:7]] == [row["mean"], row["sd"]]
        assert line[7] == "12"


def test_a_cell_has_psnr_ssims_in_percent_and_mae(tmp_path):
    rows = _rows("ridge", "T1", "T1", 20.125, 0.5, 0.25, 7.0, sd=0.015)
    write_table_markdown(tmp_path / "t.md", rows, LABELS, [])
    cell = "20.12 ± 0.01<br>50.00 ± 1.50 / 25.00 ± 1.50<br>7.00 ± 0.01"
    label = "ridge, linear (floor)"
    assert _table(tmp_path / "t.md", 0) == {(label,): {"T1": cell}}


def test_the_best_of_each_column_is_bold_high_but_low_for_mae(tmp_path):
    rows = _rows("ridge", "T1", "T1", 20.0, 0.90, 0.80, 7.0, sd=np.nan)
    rows += _rows("mean", "T1", "T1", 25.0, 0.85, 0.80, 6.0, sd=np.nan)
    rows += _rows("ridge", "T2", "T2", 21.0, 0.9, 0.9, 5.0, sd=np.nan)
    rows += _rows("mean", "T2", "T2", np.nan, 0.9 - 1e-7, 0.8, np.nan, sd=np.nan)
    write_table_markdown(tmp_path / "t.md", rows, LABELS, [])
    table = _table(tmp_path / "t.md", 0)
    ridge, mean = table["ridge, linear (floor)",], table["mm-CSN mean, 1 evaluation",]
    assert ridge["T1"] == "20.00<br>**90.00** / **80.00**<br>7.00"
    assert mean["T1"] == "**25.00**<br>85.00 / **80.00**<br>**6.00**"
    assert ridge["T2"] == "**21.00**<br>**90.00** / **90.00**<br>**5.00**"
    assert mean["T2"] == "–<br>**90.00** / 80.00<br>–"


def test_methods_are_labelled_and_in_the_labels_order_with_unknown_ones_last(tmp_path):
    methods = ["other", "ridge", "ridge2", "mean", "warm", "algorithm1"]
    rows = [_row(method, "T1", "T1", "psnr", 20.0) for method in methods]
    write_table_markdown(tmp_path / "t.md", rows, method_labels(50, 9), [])
    assert [method for (method,) in _table(tmp_path / "t.md", 0)] == [
        "mm-CSN Algorithm 1, 50 evaluations",
        "mm-CSN warm start, 1 + 9 evaluations",
        "mm-CSN mean, 1 evaluation",
        "ridge, quadratic (floor)",
        "ridge, linear (floor)",
        "other",
    ]


def test_questions_with_more_missing_are_averaged_in_a_second_table(tmp_path):
    rows = _rows("ridge", "T1", "T1", 30.0, 0.9, 0.9, 1.0)
    rows += _rows("ridge", "T1+T2", "T1", 20.0, 0.5, 0.4, 7.0)
    rows += _rows("ridge", "T1+T1c", "T1", 23.0, 0.7, 0.6, 9.0)
    rows += _rows("ridge", "T1+T2", "T2", 11.0, 0.1, 0.2, 3.0)
    rows += _rows("ridge", "T1+T1c+T2", "T1", 5.0, 0.0, 0.0, 40.0)
    rows += _rows("mean", "T1+T2", "T1", 20.0, 0.6, 0.3, 6.0)
    rows += _rows("mean", "T1+T1c", "T1", 22.0, 0.8, 0.3, 8.0)
    write_table_markdown(tmp_path / "t.md", rows, LABELS, [])
    ridge, mean = "ridge, linear (floor)", "mm-CSN mean, 1 evaluation"
    first, second = (_table(tmp_path / "t.md", number) for number in (0, 1))
    assert list(first) == [(ridge,)] and list(first[ridge,]) == ["T1"]
    assert first[ridge,]["T1"].startswith("30.00 ± 0.50<br>")
    assert list(second) == [("2", mean), ("2", ridge), ("3", ridge)]
    cell = "**21.50**<br>60.00 / **50.00**<br>8.00<br>n = 24"
    assert second["2", ridge]["T1"] == cell
    assert second["2", mean]["T1"] == "21.00<br>**70.00** / 30.00<br>**7.00**<br>n = 24"
    assert second["2", ridge]["T2"].startswith("11.00 ± 0.50<br>")
    assert second["2", mean]["T2"] == "–<br>– / –<br>–"


def test_every_profile_is_named_over_its_own_numbers(tmp_path):
    rows = _rows("ridge", "T1", "T1", 30.0, 0.9, 0.9, 1.0, profile="first")
    rows += _rows("mean", "T1", "T1", 10.0, 0.1, 0.1, 9.0, profile="second")
    write_table_markdown(tmp_path / "t.md", rows, LABELS, [])
    before, after = (tmp_path / "t.md").read_text().split("## Profile `second`")
    assert "## Profile `first`" in before and "30.00" in before
    assert "10.00" not in before and "10.00" in after and "30.00" not in after


def test_subjects_notes_and_the_sentence_on_research_are_in_the_table(tmp_path):
    rows = [_row("ridge", "T1", "T1", "psnr", 20.0, subjects=90)]
    rows += [_row("ridge", "T2", "T2", "psnr", 20.0, subjects=92)]
    write_table_markdown(tmp_path / "t.md", rows, LABELS, ["Slices 50 to 109."])
    text = (tmp_path / "t.md").read_text()
    assert "over 90 to 92 subjects." in text
    assert text.endswith(f"\n\n- Slices 50 to 109.\n- {report.RESEARCH_ONLY}\n")
    assert "For research only" in text
    write_table_markdown(tmp_path / "t.md", rows[:1], LABELS, [])
    assert "over 90 subjects." in (tmp_path / "t.md").read_text()


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one row"):
        write_table_markdown(tmp_path / "t.md", [], LABELS, [])


def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_csv(path, [_row("ridge", "T1", "T1", "psnr", 20.0)], COLUMNS)
    before = path.read_bytes()

    def full_disk(source, target):
        assert os.path.exists(source) and os.path.dirname(source) == str(tmp_path)
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    for write in (lambda: write_csv(path, [], COLUMNS), lambda: write_figure(path, _panels())):
        with pytest.raises(OSError, match="no space"):
            write()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


def _panels():
    """Two subjects, two modalities: flat brains with a mark anterior on the right."""
    truth = np.zeros((2, 2, 60, 50))
    truth[..., 10:50, 8:40] = np.array([[100, 127], [154, 181]])[..., None, None]
    truth[..., 42:48, 30:38] = 211.0  # rows run to the anterior, columns to the right
    better, worse = truth.copy(), truth.copy()
    better[..., 12:20, 10:30] += 20
    worse[..., 12:20, 10:30] -= 40
    estimates = {"better": better, "worse, by far": worse}
    return Panels(("one", "two"), ("T1", "T2"), truth, estimates)


def _pixels(path, panels):
    write_figure(path, panels)
    return np.round(imread(path)[..., :3] * 255).astype(int)


def _solid(pixels, colour):
    """Where runs of a colour are: rows and columns of 20 alike side by side."""
    same = (pixels == colour).all(-1)
    return np.argwhere(np.lib.stride_tricks.sliding_window_view(same, 20, 1).all(-1))


def test_anterior_is_up_and_the_patients_right_is_on_the_left(tmp_path):
    pixels = _pixels(tmp_path / "figure.png", _panels())
    brain, mark = _solid(pixels, [100] * 3), _solid(pixels, [211] * 3)
    first = mark[(mark < brain[0] + 100).all(1)]  # the truth's, of the first tile
    low, high = brain[brain[:, 0] < brain[0, 0] + 130].min(0), brain.max(0)
    assert 0 < first[0, 0] - low[0] < 20 * 1.5
    assert 0 <= first[:, 1].min() - low[1] < 20
    assert high[1] - first[:, 1].max() > 30


def test_rows_are_truth_then_each_synthesis_above_its_error(tmp_path):
    pixels = _pixels(tmp_path / "figure.png", _panels())
    tops = {}
    inferno = matplotlib.colormaps["inferno"]
    for name, colour in {
        "truth": [100] * 3,
        "better": [120] * 3,
        "worse": [60] * 3,
        "small error": inferno(20 / 40, bytes=True)[:3],
        "large error": inferno(40 / 40, bytes=True)[:3],
    }.items():
        runs = _solid(pixels, colour)
        left = _solid(pixels, [100] * 3)[:, 1].min()
        column = runs[(abs(runs[:, 1] - left) < 60)]
        tops[name] = column[:, 0].min()
    assert list(tops) == ["truth", "better", "worse", "small error", "large error"]
    order = sorted(tops, key=tops.get)
    assert order == ["truth", "better", "small error", "worse", "large error"]


def test_every_tile_has_the_same_grey_window_and_exact_pixels(tmp_path):
    pixels = _pixels(tmp_path / "figure.png", _panels())
    factor = 4  # the brain is 32 wide with 3 of margin on each side: 38, of about 150
    flat = 40 * 32 - 6 * 8
    for level in (100, 127, 154, 181):
        area = (pixels == level).all(-1).sum() / factor**2
        assert area == pytest.approx(flat + 2 * (flat - 8 * 20), abs=12)  # R and L


def test_one_colour_scale_serves_all_errors_and_is_bounded(tmp_path):
    errors = [np.full((1, 1, 4, 4), 17.0), np.full((1, 1, 4, 4), 33.0)]
    truth = np.ones((1, 1, 4, 4))
    assert figure._error_limit(truth, errors) == 40
    assert figure._error_limit(truth, [errors[0] * 0]) == 10
    assert figure._error_limit(truth, [errors[0] * 100]) == 255
    truth[..., 0] = 0
    outside = np.where(truth > 0, 5.0, 200.0)
    assert figure._error_limit(truth, [outside]) == 10


def test_a_figure_is_made_of_one_tile_of_black_and_without_methods(tmp_path):
    black = Panels(("one",), ("T1",), np.zeros((1, 1, 30, 30)), {})
    pixels = _pixels(tmp_path / "new" / "figure.png", black)
    assert (pixels == 0).all(-1).sum() > 100 * 100
