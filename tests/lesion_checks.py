"""Made subjects whose tumours enhance or not by a coin, and what their lesion scores have to be.

`test_lesions` asserts that they hold, `planted_bugs` that a mistake breaks one of them. Everything
but the coin is known from the other scans, so the laws follow in closed form.
"""

from types import SimpleNamespace

import numpy as np
from scipy import stats

from ummcsgm.data.phantom import tumour
from ummcsgm.data.phantom.make import streams
from ummcsgm.data.phantom.truth import draw_truth
from ummcsgm.evaluation import lesions
from ummcsgm.evaluation.subject import SubjectSlices

GRID = (40, 36)
MODALITIES = ("flair", "t1", "t1c", "t2")
T1, T1C = 1, 2
ROWS, COLUMNS = np.indices(GRID)
BRAIN = ((ROWS - 20) / 18) ** 2 + ((COLUMNS - 18) / 16) ** 2 <= 1
CORE = np.hypot(ROWS - 16, COLUMNS - 22) <= 4
LABELS = np.where(CORE, 1, np.where(np.hypot(ROWS - 16, COLUMNS - 22) <= 7, 2, 0))
PROBABILITY, GAIN, NOISE = 0.75, 0.6, 0.01  # of the coin; of what it adds, over the brain's median
DARKER = 0.7  # the core on T1, over the brain's median
COUNT = 8  # draws


def plain(rng):
    """[H, W] T1: anatomy of 5 %, a dark core."""
    return BRAIN * np.where(CORE, DARKER, 1) * (1 + 0.05 * np.sin(ROWS / 3 + rng.uniform(0, 6)))


def enhanced(rng, t1, number):
    """[number, H, W] T1c of a T1, by independent coins, and a noise of each voxel."""
    coins = rng.uniform(size=number) < PROBABILITY
    lit = t1 + GAIN * coins[:, None, None] * CORE
    return BRAIN * (lit + NOISE * rng.normal(size=(number, *GRID)))


def right_law(rng, t1):
    """Draws of the truth's own law."""
    return enhanced(rng, t1, COUNT)


def posterior_mean(t1):
    """What is known of T1c before the coin falls."""
    return t1 + PROBABILITY * GAIN * CORE


def white_noise(rng, t1):
    """The mean plus white noise of the very variance of each voxel."""
    coin = PROBABILITY * (1 - PROBABILITY) * GAIN**2
    sd = np.sqrt(NOISE**2 + coin * CORE)
    return BRAIN * (posterior_mean(t1) + sd * rng.normal(size=(COUNT, *GRID)))


def subject_of(number, labels=LABELS, scanned=MODALITIES, folder=None):
    """A stand-in for an EvaluatedSubject, of one slice."""
    files = dict.fromkeys(scanned, (folder or SimpleNamespace(parent=f"nowhere/{number}")))
    return SimpleNamespace(
        modalities=MODALITIES,
        prepared=SimpleNamespace(scales=dict.fromkeys(scanned, 1.0)),
        subject=SimpleNamespace(files=files),
        pixel=np.array([4.0, 4.0]),
        segmentation_on=lambda z: None if labels is None else np.stack([labels] * len(z)),
    )


def record_of(number, truth, t1, mean, draws, channel=T1C, **changes):
    """The record of a subject's one slice with one modality missing."""
    images = np.zeros((1, *GRID, 4))
    images[0, ..., T1], images[0, ..., channel] = t1, truth

    def on_channel(values):
        whole = np.zeros((*values.shape, 4))
        whole[..., channel] = values
        return whole

    name = f"P{number:03d}"
    slices = SubjectSlices(name, np.array([7]), images, BRAIN[None], np.ones(4))
    labels = {"subject": name, "group": "", "missing": MODALITIES[channel]}
    labels["modality"] = MODALITIES[channel]
    evaluated = subject_of(number, **changes)
    arrays = on_channel(mean[None]), on_channel(draws[:, None])
    return labels | lesions.score_lesions(evaluated, slices, channel, *arrays)


def records_of(law, subjects=400, seed=0):
    """Records of T1c, whose draws are those of `law`."""
    rng, found = np.random.default_rng(seed), []
    for number in range(subjects):
        t1 = plain(rng)
        (truth,), draws = enhanced(rng, t1, 1), law(rng, t1)
        found.append(record_of(number, truth, t1, posterior_mean(t1), draws))
    return found


def row_of(results, measure, modality="t1c"):
    (row,) = (r for r in results["rows"] if (r["modality"], r["measure"]) == (modality, measure))
    return row


def assert_near(row, name, value, most):
    """`value` is in the interval of a number, widened by half, and the interval tells something."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    assert high - low < most, (name, low, high)
    assert low - (high - low) / 2 < value < high + (high - low) / 2, (name, low, value, high)


def assert_right_law_passes():
    """Draws by the truth's coin: all ratios are 1, the coverage 0.9, P(it enhances) reliable."""
    results = lesions.lesion_results(records_of(right_law))
    for measure in lesions.MEASURES:
        row = row_of(results, measure)
        assert (row["lesions"], row["subjects"], row["draws"]) == (400, 400, COUNT)
        assert_near(row, "spread_ratio", 1.0, 0.2)
        assert_near(row, "spread_skill", 1.0, 0.2)
        assert_near(row, "coverage", 0.9, 0.12)
    # |x - y| of two coins is GAIN with probability 2 p (1 - p); the mean misses by as much.
    expected = PROBABILITY * (1 - PROBABILITY) * GAIN
    assert abs(row_of(results, "mean")["crps"] / expected - 1) < 0.2
    assert abs(row_of(results, "mean")["crps_of_mean"] / (2 * expected) - 1) < 0.2
    found = results["enhancement"]
    assert_near(found, "share_of_truths", PROBABILITY, 0.13)
    assert_near(found, "share_of_draws", PROBABILITY, 0.05)
    for shares in (found, found["bright"]):  # lit, a core is 1 + 0.6 / 0.7 of T1
        assert_near(shares, "share_ratio", 1.0, 0.2)
    assert_near(found, "brier", PROBABILITY * (1 - PROBABILITY), 0.08)
    assert found["share_of_mean"] == 1
    bins = [b for b in found["reliability"] if b["lesions"] > 20]
    assert len(bins) >= 3
    for b in bins:  # a coin that nobody foresees: whatever other draws do
        assert abs(b["probability"] - PROBABILITY) < 0.12, b
        assert_near(b, "frequency", PROBABILITY, 0.35)


def assert_measures_by_hand():
    """A lesion of 16 voxels by arithmetic; what lies around it does not count."""
    rng = np.random.default_rng(0)
    mask = (abs(ROWS - 16) < 2.5) & (abs(COLUMNS - 20.5) < 2)
    reference = BRAIN & (np.hypot(ROWS - 16, COLUMNS - 20) > 8)
    image = BRAIN * rng.uniform(5, 9, GRID)
    image[reference] = 2.0
    image[mask] = np.arange(20.0)
    images = np.stack([image, 3 * image, image + 4 * mask])
    found = lesions.measure_section(images, mask, reference, None, BRAIN, (4, 4))
    assert mask.sum() == 20 and set(found) == {"mean", "p90"}
    np.testing.assert_allclose(found["mean"], [4.75, 4.75, 6.75])
    np.testing.assert_allclose(found["p90"], [8.55, 8.55, 10.55])  # 17.1 and 21.1, over 2


def assert_sections_by_hand():
    """Components of a region, of enough voxels in the brain; the reference has no tumour."""
    labels = np.zeros((2, *GRID), np.int8)
    labels[0, 10:13, 10:13] = 4  # 9 voxels
    labels[0, 20:24, 10:13] = 1
    labels[0, 24, 13] = 1  # a corner is no neighbour
    labels[0, 10:14, 20:24] = 2  # no core
    labels[1, 19:22, 0:8] = 4  # in part outside
    cut = int(((labels[1] > 0) & BRAIN).sum())
    brain = np.stack([BRAIN, BRAIN])
    found = lesions.find_sections(labels, brain, "TC")
    assert 10 <= cut < 24
    assert [(z, int(mask.sum())) for z, mask, _ in found] == [(0, 12), (1, cut)]
    for z, mask, reference in found:
        assert (reference == ((labels[z] == 0) & BRAIN)).all() and not (mask & ~BRAIN).any()
    whole = lesions.find_sections(labels[:1], brain[:1], "WT")
    assert [int(mask.sum()) for _, mask, _ in whole] == [16, 12]
    full = np.full((1, *GRID), 2, np.int8)  # nothing is left to be relative to
    assert lesions.find_sections(full, brain[:1], "WT") == []


def assert_enhancement_by_hand():
    """T1c twice T1 in a wide lesion and 1.25 times elsewhere enhances by 1.6, at any contrast and
    gain, and so it does where T1 has lesions of its own."""
    rng = np.random.default_rng(1)
    lesion = np.hypot(ROWS - 18, COLUMNS - 18) <= 9
    reference = BRAIN & (np.hypot(ROWS - 18, COLUMNS - 18) > 12)
    for dark in (1.0, 0.5):
        t1 = BRAIN * np.where(lesion, dark, 1) * rng.uniform(0.99, 1.01, GRID)
        lit = t1 * np.where(lesion, 2.0, 1.25)
        images = np.stack([lit, 7 * lit, 1.25 * t1])
        numbers = lesions.measure_section(images, lesion, reference, t1, BRAIN, (9, 9))
        np.testing.assert_allclose(numbers["enhancement"], [1.6, 1.6, 1.0], rtol=1e-2)


def assert_patterns_are_those_of_the_law():
    """The frequencies of draw_dose against the stated numbers, written down here again."""
    law = {"none": 0.25, "ring": 0.36, "solid": 0.10, "patchy": 0.29}
    drawn = [tumour.draw_dose(streams(0, i)["gadolinium"]).pattern for i in range(4000)]
    counts = [drawn.count(pattern) for pattern in law]
    assert sum(counts) == 4000
    assert stats.chisquare(counts, 4000 * np.array([*law.values()])).pvalue > 1e-3
    truth = draw_truth(streams(0, 0))
    assert truth.probabilities == law and abs(truth.probability - PROBABILITY) < 1e-12
