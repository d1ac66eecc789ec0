"""The report's tables: the numbers in them, what is marked, several studies."""

import math

from made_study import METHODS, study_results, write_study

from ummcsgm.reporting import tables
from ummcsgm.reporting.study_results import read_studies, read_study
from ummcsgm.reporting.tables import Cell, format_number, score_cell


def study_of(tmp_path, **changes):
    return read_study(write_study(tmp_path, **changes))


def lines(table):
    """{words: {column: cell}} of a table."""
    return {
        tuple(cell.text for cell in line[: table.label_columns]): dict(
            zip(table.columns[table.label_columns :], line[table.label_columns :], strict=True)
        )
        for line in table.rows
    }


def test_table_1_has_every_metric_of_one_missing_modality(tmp_path):
    found = tables.single_missing_tables([study_of(tmp_path)])
    assert [table.caption.split(":")[0] for table in found] == [
        "Table 1a",
        "Table 1b",
        "Table 1c",
        "Table 1d",
    ]
    psnr, wide, wang, mae = map(lines, found)
    best, ridge = (METHODS["mm-csn"],), (METHODS["ridge"],)
    assert list(psnr)[:5] == [(title,) for title in METHODS.values()]
    assert psnr[best]["flair"] == Cell("31.00 ± 0.40", True)
    assert psnr[ridge]["t1c"] == Cell("26.50 ± 0.40", False)
    assert psnr[best]["mean"] == Cell("30.62", True)
    assert wide[ridge]["t1"] == Cell("92.75 ± 0.40", False)
    assert wang[best]["t2"] == Cell("93.25 ± 0.40", True)
    assert mae[best]["t1"] == Cell("3.12 ± 0.20", True)
    assert not mae[ridge]["t1"].best


def test_structure_has_a_table_of_bands_and_one_of_each_score_of_blocks(tmp_path):
    found = tables.structure_tables(study_of(tmp_path).structure)
    assert len(found) == 5 and tables.structure_tables([]) == []
    power, skill = lines(found[0]), lines(found[1])
    assert list(power) == [("flair",), ("t1",), ("t1c",), ("t2",)]
    assert list(power["t1",]) == ["0-0.05", "0.05-0.1", "0.1-0.2", "0.2-0.3", "0.3 up"]
    assert power["t1",]["0-0.05"] == Cell("0.40", below="0.36 to 0.48")
    assert power["t2",]["0.3 up"] == Cell("1.20", below="1.08 to 1.44")
    assert skill["t1c",] == {
        "1 x 1": Cell("0.30", below="0.27 to 0.36"),
        "16 x 16": Cell("–"),
    }
    words = ("Power of draws", "Spread-skill", "Share", "CRPS of", "CRPS of")
    for number, (table, word) in enumerate(zip(found, words, strict=True)):
        assert table.caption.startswith(word)
        value = 6 / 10 if number == 0 else (6 + number - 1) / 20
        assert next(iter(lines(table)["t1c",].values())).text == f"{value:.2f}"


def test_a_two_sample_test_has_a_row_a_modality_and_says_what_was_skipped(tmp_path):
    (table,) = tables.two_sample_tables(study_of(tmp_path).two_sample)
    assert tables.two_sample_tables([]) == []
    rows = [[cell for cell in row] for row in table.rows]
    assert [row[0].text for row in rows] == ["flair", "t1", "t1c", "t2"]
    known = [Cell("0.80", below="0.70 to 0.90"), Cell("0.50", below="0.40 to 0.60")]
    assert rows[0][1:] == [Cell("6"), Cell("120"), *known]
    assert rows[3][3:] == [Cell("–"), Cell("–")]
    assert table.notes[-1] == "Skipped: 3 test subjects." and len(table.notes) == 3


def test_structure_of_several_missing_names_them(tmp_path):
    rows = study_of(tmp_path).structure[:2]
    rows[1] |= {"missing": "flair+t1"}
    (power, *_) = tables.structure_tables(rows)
    assert list(lines(power)) == [("flair", "flair"), ("flair+t1", "t1")]


def test_lesions_have_a_table_of_measures_and_two_of_enhancement(tmp_path):
    lesions = study_of(tmp_path).lesions
    measures, enhancement, reliability = tables.lesion_tables(lesions)
    row = lines(measures)["t1c", "TC", "90th percentile"]
    assert row["truth ± sd"].text == "1.25 ± 0.50" and row["draws ± sd"].text == "1.12 ± 0.30"
    assert (row["sd ratio"].text, row["sd ratio"].below) == ("0.60", "0.50 to 0.80")
    assert row["CRPS"].text == "0.123" and row["n"].text == "6"
    unknown = lines(measures)["t2", "WT", "mean"]["sd ratio"]  # of one subject
    assert (unknown.text, unknown.below) == ("–", "")
    found = lines(enhancement)
    assert (
        found[("draws",)]["enhance"].text == "0.50" and found[("draws",)]["Brier"].text == "0.500"
    )
    assert found[("truths",)]["Brier"].text == "0.250"
    assert found[("phantoms, by their law",)]["enhance"].text == "0.75"
    notes = " ".join(enhancement.notes)
    assert found[("draws",)]["enhance brightly"].text == "0.25"
    assert (
        "above 1.1 times" in notes
        and "above 1.5 times" in notes
        and "0.90 ± 0.31" in notes
        and "0.995" in notes
    )
    assert "0.50 (0.25 to 0.75)" in notes
    bins = lines(reliability)
    assert (
        bins[("0.8 to 1",)]["n"].text == "4.5" and bins[("0.8 to 1",)]["frequency"].text == "0.44"
    )
    assert bins[("0 to 0.2",)]["frequency"].below == "0.90 to 1.10"
    (sentence,) = tables.lesions_skipped(lesions)
    assert sentence == "Without a lesion score: 1 subject (no segmentation): P005."


def test_of_patients_and_without_lesions_less_is_said(tmp_path):
    lesions = study_of(tmp_path).lesions
    lesions["enhancement"]["known"] = None
    _, enhancement, _ = tables.lesion_tables(lesions)
    assert ("phantoms, by their law",) not in lines(enhancement) and len(enhancement.notes) == 1
    assert len(tables.lesion_tables(lesions | {"enhancement": None})) == 1
    assert tables.lesion_tables(lesions | {"enhancement": None, "rows": []}) == []
    assert tables.lesion_tables({}) == [] and tables.lesions_skipped({}) == []


def test_the_papers_numbers_stand_beside_ours(tmp_path):
    found = tables.single_missing_tables([study_of(tmp_path)])
    psnr, mae = lines(found[0]), lines(found[3])
    cell = psnr[(METHODS["mmgan"],)]["t1"]
    assert (cell.text, cell.below) == ("28.75 ± 0.40", "paper 27.50 ± 1.25")
    assert psnr[("sgan (paper)",)]["t2"] == Cell("26.50")
    assert psnr[("sgan (paper)",)]["flair"] == Cell("–")
    assert ("sgan (paper)",) not in mae


def test_a_method_that_lacks_a_modality_has_no_mean_and_is_not_its_best(tmp_path):
    rows = [
        row
        for row in study_results()["rows"]
        if (row["method"], row["modality"]) != ("mm-csn", "t2")
    ]
    psnr = lines(tables.single_missing_tables([study_of(tmp_path, rows=rows)])[0])
    assert psnr[(METHODS["mm-csn"],)]["mean"] == Cell("–")
    assert psnr[(METHODS["mm-csn"],)]["t2"] == Cell("–")
    assert psnr[(METHODS["mm-csn-draw"],)]["mean"] == Cell("29.62", True)


def test_more_missing_are_told_apart_by_how_many(tmp_path):
    psnr = lines(tables.several_missing_tables([study_of(tmp_path)])[0])
    assert psnr["2", METHODS["mm-csn"]]["flair"] == Cell("29.00 ± 0.40", True, "n = 6")
    assert psnr["3", METHODS["mm-csn"]]["flair"] == Cell("27.00 ± 0.40", True, "n = 6")
    assert psnr["3", METHODS["mm-csn"]]["t1c"] == Cell("–")


def test_every_configuration_counts_and_only_equals_are_compared(tmp_path):
    """As where subjects lack modalities: some questions have fewer subjects."""
    labels = {"metric": "psnr", "modality": "flair", "sd": 1.0, "slices": None}
    rows = [labels | {"method": "a", "mean": 30.0, "subjects": 5}]
    rows += [labels | {"method": "a", "mean": 20.0, "subjects": 3}]
    other = [row | {"method": "b", "mean": row["mean"] + 1} for row in reversed(rows)]
    fewer = [rows[0] | {"method": name, "mean": 40.0} for name in "cd"]
    rows += other + fewer
    assert score_cell(rows, "a") == Cell("25.00", False)
    assert score_cell(rows, "b") == Cell("26.00", True)
    assert score_cell(rows, "c") == Cell("40.00 ± 1.00", False)


def test_profiles_have_tables_of_their_own(tmp_path):
    rows = study_results()["rows"]
    rows += [row | {"profile": "other", "mean": row["mean"] - 20} for row in rows]
    found = tables.single_missing_tables([study_of(tmp_path, rows=rows)])
    assert len(found) == 8 and found[4].caption.endswith("profile other")
    assert lines(found[4])[(METHODS["mm-csn"],)]["flair"].text == "11.00 ± 0.40"
    assert lines(found[0])[(METHODS["mm-csn"],)]["flair"].text == "31.00 ± 0.40"


def test_what_is_not_known_is_a_dash(tmp_path):
    rows = study_results()["rows"]
    rows[0] |= {"mean": None}
    psnr = lines(tables.single_missing_tables([study_of(tmp_path, rows=rows)])[0])
    assert psnr[(METHODS["mm-csn"],)]["flair"].text.startswith("–")
    assert psnr[(METHODS["mm-csn-draw"],)]["flair"].best
    assert [format_number(value) for value in (None, math.nan, math.inf)] == ["–"] * 3
    assert (format_number(1234567, 0), format_number(0.0123, 4)) == ("1,234,567", "0.0123")


def test_crps_and_costs(tmp_path):
    study = study_of(tmp_path)
    crps = lines(tables.crps_tables([study])[0])
    assert crps[(METHODS["mm-csn"],)]["t1"] == Cell("4.00 ± 0.50", True)
    assert crps[(METHODS["ridge"],)]["mean"] == Cell("8.00")
    costs = lines(tables.cost_tables([study])[0])
    assert (METHODS["ridge"],) not in costs
    printed = {head: cell.text for head, cell in costs[("pix2pix",)].items()}
    assert printed == {
        "parameters": "4,938,268",
        "GFLOP": "0.17",
        "training, s": "–",
        "steps": "10,000",
        "images seen": "160,000",
        "s a slice": "0.0123",
    }


def test_the_truth_is_no_rival_downstream(tmp_path):
    whole, enhancing = tables.dice_tables([study_of(tmp_path)])
    found = lines(whole)
    assert list(found)[:2] == [("the truth",), ("nothing (zeros)",)]
    assert found[("the truth",)]["t1"] == Cell("80.00 ± 5.00", False)
    assert found[(METHODS["mm-csn"],)]["t1"] == Cell("70.00 ± 5.00", True)
    assert found[(METHODS["ridge"],)]["t1"] == Cell("50.00 ± 5.00", False)
    assert "Subjects without enhancing, left out: 1." in enhancing.notes
    assert not any("left out" in note for note in whole.notes)


def test_what_draws_say_of_the_tumour_stands_beside_the_mean(tmp_path):
    (table,) = tables.tumour_map_tables(study_of(tmp_path))
    found = lines(table)
    printed = [cell.text for cell in found["draws", "t1c", "enhancing"].values()]
    assert printed == ["6", "50.0", "0.0123", "0.0057"]
    assert found["mean", "t1c", "enhancing"]["Dice, %"].text == "–"
    assert "up to 1 lack it" in table.notes[1]


def test_tests_have_their_interval_and_two_p_values(tmp_path):
    psnr, mae = tables.significance_tables(study_of(tmp_path))
    assert psnr.caption == f"PSNR, dB: {METHODS['mm-csn']} minus each method"
    found = lines(psnr)["pix2pix", "t2"]
    assert [cell.text for cell in found.values()] == [
        "6",
        "+1.20",
        "+0.90 to +1.50",
        "< 0.001",
        "0.200",
    ]
    assert not found["Holm p"].best
    assert lines(psnr)["pix2pix", "t1"]["Holm p"] == Cell("0.004", True)
    assert tables.NEGATIVE_IS_BETTER in mae.notes and not psnr.folded
    assert [tables.format_p(p) for p in (math.nan, 9e-4, 0.04999)] == ["–", "< 0.001", "0.050"]


def better(amount):
    rows = study_results()["rows"]
    return [row | {"mean": row["mean"] + amount} for row in rows]


def test_the_best_of_several_runs_is_one(tmp_path):
    folders = [write_study(tmp_path / "one"), tmp_path / "two"]
    write_study(folders[1], rows=better(0.5))
    psnr = lines(tables.single_missing_tables(read_studies(folders))[0])
    assert psnr["one", METHODS["mm-csn"]]["t1"] == Cell("30.75 ± 0.40", False)
    assert psnr["two", METHODS["mm-csn"]]["t1"] == Cell("31.25 ± 0.40", True)


def test_the_best_of_runs_on_other_data_is_one_a_run(tmp_path):
    folders = [write_study(tmp_path / "one"), tmp_path / "two"]
    write_study(folders[1], rows=better(0.5), data_sha256="e" * 64)
    studies = read_studies(folders)
    assert not tables.same_test_data(studies) and tables.same_test_data(studies[:1])
    psnr = lines(tables.single_missing_tables(studies)[0])
    assert psnr["one", METHODS["mm-csn"]]["t1"].best
    assert psnr["two", METHODS["mm-csn"]]["t1"].best


def test_runs_without_hashes_are_not_known_to_be_comparable(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write_study(folder, split_sha256=None)
    assert not tables.same_test_data(read_studies(folders))


def test_what_is_printed_alike_is_marked_alike():
    rows = [
        {"method": name, "metric": "psnr", "mean": mean, "sd": 1.0, "subjects": 3}
        for name, mean in (("a", 30.001), ("b", 30.004), ("c", 29.99))
    ]
    assert [score_cell(rows, name).best for name in "abc"] == [True, True, False]
    assert score_cell(rows[:1], "a") == Cell("30.00 ± 1.00", False)
    assert score_cell(rows, "d") == Cell("–")


def test_losses_are_listed_by_what_was_trained(tmp_path):
    found = lines(tables.loss_tables([study_of(tmp_path)])[0])
    assert list(found) == [("mm-CSN",), (METHODS["mmgan"],), ("pix2pix",)]
    printed = [cell.text for cell in found[("mm-CSN",)].values()]
    assert printed[:3] == ["2,000", "1.2", "0.05"]
