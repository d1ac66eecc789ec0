"""Paired tests and Holm's correction, against values worked out by hand."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from ummcsgm.study.significance import add_holm, holm, paired_tests


def rows(method, psnrs, modality="t1", missing="t1"):
    return [
        {
            "subject": f"S{index}",
            "method": method,
            "missing": missing,
            "modality": modality,
            "psnr": psnr,
            "mae": 40 - psnr,
        }
        for index, psnr in enumerate(psnrs)
    ]


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04 times 4 3 2 1, never falling: .04 .06 .06 .06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_pairs_are_of_the_same_subject_whatever_the_order():
    better = [30.0, 31.5, 29.0, 33.0, 28.0, 35.0, 30.5]
    gains = np.array([0.5, 0.2, 0.9, -0.1, 0.4, 0.3, 0.6])
    worse = (np.array(better) - gains).tolist()
    subjects = rows("a", better)[::-1] + rows("b", worse)
    psnr, mae = paired_tests(subjects, "a", ["b"], "t1")
    assert psnr["difference"] == pytest.approx(gains.mean())
    assert mae["difference"] == pytest.approx(-gains.mean())
    assert psnr["p"] == pytest.approx(wilcoxon(gains).pvalue)
    # Ranks of the magnitudes: only the least one, -0.1, is negative: W = 1 of 2^7
    # signs, which have sums 0 and 1 once each on either side.
    assert psnr["p"] == pytest.approx(4 / 2**7)
    assert psnr["low"] < gains.mean() < psnr["high"] and psnr["low"] > 0
    assert (psnr["subjects"], psnr["reference"], psnr["method"]) == (7, "a", "b")


def test_only_subjects_that_both_answered_for_and_only_single_questions_count():
    subjects = rows("a", [30.0, 31.0, 32.0]) + rows("b", [29.0, 29.5])
    subjects += rows("a", [10.0] * 3, missing="t1+t2") + rows("b", [50.0] * 3, "t2")
    (psnr, _) = paired_tests(subjects, "a", ["b"], "t1")
    assert psnr["subjects"] == 2 and psnr["difference"] == pytest.approx(1.25)


def test_a_subject_without_any_error_has_no_psnr_to_compare():
    subjects = rows("a", [30.0, 31.0, 32.0]) + rows("b", [29.0, 29.5, 30.0])
    subjects[4]["psnr"] = None
    psnr, mae = paired_tests(subjects, "a", ["b"], "t1")
    assert (psnr["subjects"], mae["subjects"]) == (2, 3)
    assert psnr["difference"] == pytest.approx(1.5)


def test_what_is_alike_is_not_significant_and_one_subject_has_no_interval():
    same = rows("a", [30.0, 31.0]) + rows("b", [30.0, 31.0])
    assert paired_tests(same, "a", ["b"], "t1")[0]["p"] == 1.0
    single = paired_tests(rows("a", [30.0]) + rows("b", [29.0]), "a", ["b"], "t1")[0]
    assert single["low"] is None and single["high"] is None
    assert paired_tests(rows("a", [30.0]), "a", ["b"], "t1") == []
    more = rows("a", [30.0]) + rows("b", [29.0, 28.0])  # of which one is b's alone
    assert paired_tests(more, "a", ["b"], "t1")[0]["subjects"] == 1


def test_each_metric_is_a_family_of_all_methods_and_modalities():
    generator = np.random.default_rng(0)
    subjects = []
    for modality in ("t1", "t2"):
        for method, shift in (("a", 0.0), ("b", -0.3), ("c", -0.05)):
            psnrs = 30 + shift + 0.4 * generator.normal(size=12)
            subjects += rows(method, psnrs.tolist(), modality, modality)
    found = [row for m in ("t1", "t2") for row in paired_tests(subjects, "a", ["b", "c"], m)]
    corrected = add_holm(found)
    for metric in ("psnr", "mae"):
        group = [row for row in corrected if row["metric"] == metric]
        assert len(group) == 4
        least = min(group, key=lambda row: row["p"])
        assert least["p_holm"] == pytest.approx(min(1, 4 * least["p"]))
        assert all(row["p_holm"] >= row["p"] for row in group)


def test_the_interval_is_the_same_in_every_run_and_holds_the_mean():
    generator = np.random.default_rng(1)
    subjects = rows("a", (30 + generator.normal(size=20)).tolist())
    subjects += rows("b", (29.5 + generator.normal(size=20)).tolist())
    entry, two = (paired_tests(subjects, "a", ["b"], "t1")[0] for _ in range(2))
    assert entry == two
    spread = entry["high"] - entry["low"]
    differences = [a["psnr"] - b["psnr"] for a, b in zip(subjects[:20], subjects[20:], strict=True)]
    normal = 2 * 1.96 * np.std(differences, ddof=1) / np.sqrt(20)
    assert spread == pytest.approx(normal, rel=0.15)
