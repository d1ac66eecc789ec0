"""The tables of an evaluation, read back cell by cell."""

import csv

import numpy as np
import pytest

from ummcsgm.reporting.evaluation_report import method_titles, write_scores
from ummcsgm.reporting.figures import RESEARCH_ONLY
from ummcsgm.reporting.tables import write_csv
from ummcsgm.types import InputError

COLUMNS = "method missing modality profile profile_hash metric mean sd subjects".split()
TITLES = method_titles(1000, 12)
MEAN, RIDGE = "mm-CSN mean, 1 evaluation", "ridge, linear (floor)"


def row(method, missing, modality, metric, mean, sd=0.5, profile="p", subjects=12):
    values = method, missing, modality, profile, "0123", metric, mean, sd, subjects
    return dict(zip(COLUMNS, values, strict=True))


def score_rows(method, missing, modality, psnr, ssim, wang, mae, **more):
    means = {"psnr": psnr, "ssim_global": ssim, "ssim_wang": wang, "mae": mae}
    return [row(method, missing, modality, k, v, **more) for k, v in means.items()]


def written(tmp_path, rows, titles=TITLES, notes=()):
    write_scores(tmp_path / "t.md", rows, titles, list(notes))
    return (tmp_path / "t.md").read_text()


def tables(text):
    """The cells of each table by (first cells up to the method's name) and column."""
    found = []
    for block in (b for b in text.split("\n\n") if b.startswith("|")):
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        columns, start = lines[0], lines[0].index("method") + 1
        found.append(
            {
                tuple(line[:start]): dict(zip(columns[start:], line[start:], strict=True))
                for line in lines[2:]
            }
        )
    return found


def test_csv_gives_back_every_number_in_full(tmp_path):
    rows = score_rows("ridge", "T1", "T1", 1 / 3, np.float64(0.1), 2e-17, 5.0, sd=np.pi)
    write_csv(tmp_path / "table.csv", rows, COLUMNS)
    with open(tmp_path / "table.csv", newline="") as file:
        back = list(csv.reader(file))
    assert back[0] == COLUMNS
    for expected, line in zip(rows, back[1:], strict=True):
        assert line[:6] == [expected[column] for column in COLUMNS[:6]]
        assert [float(x) for x in line[6:8]] == [expected["mean"], expected["sd"]]
        assert line[8] == "12"


def test_each_metric_has_a_table_with_the_best_of_each_column_bold(tmp_path):
    rows = score_rows("ridge", "T1", "T1", 20.0, 0.90, 0.80, 7.0, sd=0.015)
    rows += score_rows("mean", "T1", "T1", 25.0, 0.85, 0.80, 6.0, sd=np.nan)
    rows += score_rows("ridge", "T2", "T2", 21.0, 0.9, 0.9, 5.0, sd=np.nan)
    rows += score_rows("mean", "T2", "T2", np.nan, 0.9 - 1e-7, 0.8, np.nan, sd=np.nan)
    psnr, ssim, wang, mae = tables(written(tmp_path, rows))
    assert psnr[RIDGE,]["T1"] == "20.00 ± 0.01" and psnr[MEAN,]["T1"] == "**25.00**"
    assert ssim[RIDGE,]["T1"] == "**90.00 ± 1.50**" and ssim[MEAN,]["T1"] == "85.00"
    assert wang[RIDGE,]["T1"] == "**80.00 ± 1.50**" and wang[MEAN,]["T1"] == "**80.00**"
    assert mae[RIDGE,]["T1"] == "7.00 ± 0.01" and mae[MEAN,]["T1"] == "**6.00**"
    assert [t[RIDGE,]["T2"] for t in (psnr, ssim, wang, mae)] == [
        "**21.00**",
        "**90.00**",
        "**90.00**",
        "**5.00**",
    ]
    assert [t[MEAN,]["T2"] for t in (psnr, ssim, wang, mae)] == ["–", "**90.00**", "80.00", "–"]


def test_methods_have_titles_and_their_order_with_unknown_ones_last(tmp_path):
    methods = ["other", "ridge", "ridge2", "mean", "warm", "algorithm1"]
    rows = [row(method, "T1", "T1", "psnr", 20.0) for method in methods]
    (table,) = tables(written(tmp_path, rows, method_titles(50, 9)))
    assert [method for (method,) in table] == [
        "mm-CSN Algorithm 1, 50 evaluations",
        "mm-CSN warm start, 1 + 9 evaluations",
        "mm-CSN mean, 1 evaluation",
        "ridge, quadratic (floor)",
        "ridge, linear (floor)",
        "other",
    ]


def test_more_missing_are_averaged_in_tables_of_their_own(tmp_path):
    rows = score_rows("ridge", "T1", "T1", 30.0, 0.9, 0.9, 1.0)
    rows += score_rows("ridge", "T1+T2", "T1", 20.0, 0.5, 0.4, 7.0)
    rows += score_rows("ridge", "T1+T1c", "T1", 23.0, 0.7, 0.6, 9.0)
    rows += score_rows("ridge", "T1+T2", "T2", 11.0, 0.1, 0.2, 3.0)
    rows += score_rows("ridge", "T1+T1c+T2", "T1", 5.0, 0.0, 0.0, 40.0)
    rows += score_rows("mean", "T1+T2", "T1", 20.0, 0.6, 0.3, 6.0)
    rows += score_rows("mean", "T1+T1c", "T1", 22.0, 0.8, 0.3, 8.0)
    found = tables(written(tmp_path, rows))
    single, several = found[:4], found[4:]
    assert list(single[0]) == [(RIDGE,)] and list(single[0][RIDGE,]) == ["T1"]
    assert single[0][RIDGE,]["T1"] == "30.00 ± 0.50"
    assert list(several[0]) == [("2", MEAN), ("2", RIDGE), ("3", RIDGE)]
    assert [table["2", RIDGE]["T1"] for table in several] == [
        "**21.50** (n = 24)",
        "60.00 (n = 24)",
        "**50.00** (n = 24)",
        "8.00 (n = 24)",
    ]
    assert several[3]["2", MEAN]["T1"] == "**7.00** (n = 24)"
    assert several[0]["2", RIDGE]["T2"] == "11.00 ± 0.50 (n = 12)"
    assert several[0]["2", MEAN]["T2"] == "–"


def test_profiles_subjects_notes_and_the_sentence_on_research_are_in_the_file(tmp_path):
    rows = [row("ridge", "T1", "T1", "psnr", 20.0, subjects=90, profile="first")]
    rows += [row("ridge", "T2", "T2", "psnr", 10.0, subjects=92, profile="second")]
    text = written(tmp_path, rows, notes=["Slices 50 to 109."])
    before, after = text.split("; profile second")
    assert "; profile first" in before and "20.00" in before and "20.00" not in after
    assert "Metrics of profile first (0123), second (0123)." in text
    assert text.endswith(f"\n- Slices 50 to 109.\n- {RESEARCH_ONLY}\n")
    rows[1] |= {"profile": "first"}
    assert "over 90 to 92 subjects." in written(tmp_path, rows)
    assert "over 90 subjects." in written(tmp_path, rows[:1])


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one row"):
        written(tmp_path, [])
