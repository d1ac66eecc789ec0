"""Whether one method is better than another on the same subjects, and by how much."""

import zlib
from collections.abc import Sequence

import numpy as np
from scipy.stats import wilcoxon

from ummcsgm.evaluation.calibration import subject_interval
from ummcsgm.types import Array

LEVEL = 0.95  # of the intervals of differences
RESAMPLES = 10000
METRICS = ("psnr", "mae")


def paired_tests(
    subjects: Sequence[dict], reference: str, others: Sequence[str], modality: str
) -> list[dict]:
    """A row for each metric of METRICS and method of `others`: `reference` minus the method
    on the subjects that have both, with `modality` alone missing.

    The mean difference, the central LEVEL of its bootstrap over subjects (`low`, `high`;
    None for a single subject), and p of Wilcoxon's signed-rank test, two-sided; `add_holm`
    adds `p_holm`. `subjects` are the rows of the study's table of subjects.
    """
    scores = {
        (row["method"], row["subject"]): row
        for row in subjects
        if row["missing"] == row["modality"] == modality
    }
    rows = []
    for method in others:
        names = {name for method_name, name in scores if method_name == method}
        names = sorted(name for name in names if (reference, name) in scores)
        for metric in METRICS:
            pairs = [[scores[m, name][metric] for m in (reference, method)] for name in names]
            pairs = [pair for pair in pairs if None not in pair]  # no PSNR without any error
            if pairs:
                facts = {"metric": metric, "modality": modality, "method": method}
                facts |= {"reference": reference, "subjects": len(pairs)}
                rows.append(facts | _difference(np.array(pairs), [*facts.values()]))
    return rows


def _difference(pairs: Array, address: list) -> dict:
    differences = pairs[:, 0] - pairs[:, 1]
    row = {"difference": float(differences.mean()), "low": None, "high": None}
    if len(differences) > 1:
        generator = np.random.default_rng(zlib.crc32(repr(address).encode()))
        ends = subject_interval(
            generator, lambda rows: rows.mean(axis=0), differences, level=LEVEL, resamples=RESAMPLES
        )
        row |= {"low": float(ends[0]), "high": float(ends[1])}
    return row | {"p": _p_value(differences)}


def _p_value(differences: Array) -> float:
    if not np.any(differences):
        return 1.0  # no difference at all
    return float(wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for multiple tests by Holm 1979, in their order.

    With probability 1 - level, none of those below a level is so by chance.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def add_holm(rows: list[dict]) -> list[dict]:
    """The rows of `paired_tests` with `p_holm`: all methods and modalities of a metric are
    one family."""
    for metric in METRICS:
        family = [row for row in rows if row["metric"] == metric]
        corrected = holm([row["p"] for row in family])
        for row, p in zip(family, corrected, strict=True):
            row["p_holm"] = p
    return rows
