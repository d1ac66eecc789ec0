"""Every profile against scikit-image with explicit ranges, its quirks, and its hash."""

import dataclasses

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ummcsgm.evaluation import metrics, protocols
from ummcsgm.evaluation.metrics import ssim_global
from ummcsgm.evaluation.protocols import (
    PROFILES,
    TABLE1,
    ScoredVolume,
    profile_hash,
    score,
    scored_slices,
)
from ummcsgm.types import InputError

# A hash that differs here is a changed definition: numbers of before and after must not
# be compared, and whoever changes it says so by changing this table.
HASHES = {
    "umm-csgm-table1": "098b4bc57bc5",
    "mm-gan": "6e5b7df7294a",
    "hi-net": "2887f2bc7c02",
    "fast-ddpm": "821f84662f6e",
    "brasyn-official": "b00cf34075c8",
    "brain-only": "76b86aa231e2",
    "volume-3d": "76c06c8abe86",
    "tumour": "0de05721665f",
    "healthy": "9601102c97db",
}
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
by_name = {profile.name: profile for profile in PROFILES}
each_depth = pytest.mark.parametrize("depth", [14, metrics.CHUNK, 43])
each_profile = pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)


def noisy_volume(shape=(14, 26, 22), seed=0, gain=1.0, tumour=True):
    """A truth with negative and very bright voxels, a noisy estimate in its units."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(shape, bool)
    brain[1:, 4:-5, 3:-4] = True
    truth = np.where(brain, rng.gamma(9, 80, shape), 0.0)
    truth[3, 10, 8:11] = 90000.0, 6000.0, -50.0
    estimate = np.where(brain, truth.clip(0, 3000) + rng.normal(0, 120, shape), 0.0)
    estimate[2, 1, 1:4] = 300.0, 250.0, 5.0  # outside the brain
    lesion = np.zeros(shape, bool)
    lesion[4:8, 8:13, 9:15] = tumour
    return ScoredVolume(truth, gain * estimate, brain, lesion)


def in_grey_levels(volume, masked=True):
    top = np.percentile(volume.truth[volume.brain], 99.9)
    estimate = np.where(volume.brain, volume.estimate, 0) if masked else volume.estimate
    return [(image / top * 255).clip(0, 255) for image in (volume.truth, estimate)]


def ssim(truth, estimate, span, **options):
    return structural_similarity(truth, estimate, data_range=span, **options)


def close(values, expected):
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert list(values) == list(expected)


def test_table1_scores_as_its_text_says():
    volume = noisy_volume()
    truth, estimate = in_grey_levels(volume)
    expected = {"psnr": [], "ssim_global": [], "ssim_wang": [], "mae": []}
    for a, b in zip(truth[1:], estimate[1:], strict=True):  # the lowest has no brain
        expected["psnr"].append(peak_signal_noise_ratio(a, b, data_range=255))
        expected["ssim_global"].append(ssim_global(a, b, 255))
        expected["ssim_wang"].append(ssim(a, b, 255.0, **GAUSSIAN))
        expected["mae"].append(np.abs(a - b).mean())
    close(score(TABLE1, volume), {name: np.mean(values) for name, values in expected.items()})
    assert TABLE1.slices == protocols.Slices(155, 50, 109, 0.2)
    assert (TABLE1.percentiles, TABLE1.peak) == ((99.9,), 255.0)


def test_chosen_slices_score_as_a_volume_of_which_these_count():
    volume, z = noisy_volume(), np.array([2, 5, 6])
    some = dataclasses.replace(volume, estimate=volume.estimate[z], slices=z)
    values = [
        score(TABLE1, dataclasses.replace(volume, estimate=volume.estimate[[k]], slices=[k]))
        for k in z
    ]
    expected = {name: np.mean([each[name] for each in values]) for name in values[0]}
    assert score(TABLE1, some) == pytest.approx(expected, rel=1e-12)
    every = np.arange(1, 14)
    all_slices = dataclasses.replace(volume, estimate=volume.estimate[every], slices=every)
    assert score(TABLE1, all_slices) == score(TABLE1, volume)


def test_a_slice_without_any_error_is_left_out_of_the_psnr_of_table1():
    volume, z = noisy_volume(), np.array([2, 5, 6])
    volume.estimate[5] = volume.truth[5]
    values = [
        score(TABLE1, dataclasses.replace(volume, estimate=volume.estimate[some], slices=some))
        for some in (z, z[[0, 2]], z[[1]])
    ]
    assert values[0]["psnr"] == values[1]["psnr"] and np.isfinite(values[0]["psnr"])
    assert values[0]["mae"] == pytest.approx(values[1]["mae"] * 2 / 3)
    assert isinstance(values[2]["psnr"], metrics.NoErrorError)


def test_wrong_shapes_and_slices_are_refused():
    volume, z = noisy_volume(), np.array([2, 5, 6])
    some = dataclasses.replace(volume, estimate=volume.estimate[z], slices=z)
    for profile, other, words in (
        (TABLE1, {"slices": z[:0], "estimate": volume.estimate[:0]}, "no slice"),
        (TABLE1, {"estimate": volume.estimate[:1]}, r"\(3, 26, 22\).*\(1, 26, 22\)"),
        (TABLE1, {"brain": volume.brain[:3]}, r"\(14, 26, 22\).*\(3, 26, 22\)"),
        (by_name["volume-3d"], {}, "volume-3d measures whole volumes"),
    ):
        with pytest.raises(InputError, match=words):
            score(profile, dataclasses.replace(some, **other))


def test_only_profiles_of_slices_that_scale_slice_by_slice_take_chosen_slices():
    """Statistics of a whole estimate would be those of its chosen slices."""
    of_the_estimate = {"own minimum and maximum, negatives 0", "own percentiles"}
    assert not {p.scaling for p in PROFILES if p.slices} & of_the_estimate


def test_brats_volumes_are_scored_on_slices_50_to_109_whatever_the_brain_area():
    brain = np.zeros((155, 20, 20), bool)
    brain[:, 10, 10] = True
    assert scored_slices(brain, TABLE1).tolist() == list(range(50, 110))
    brain[60] = False
    expected = [z for z in range(50, 110) if z != 60]
    assert scored_slices(brain, TABLE1).tolist() == expected


def test_other_volumes_are_scored_where_the_brain_covers_more_than_a_fifth():
    brain = np.zeros((4, 10, 10), bool)
    brain[1].flat[:20] = True
    brain[2].flat[:21] = True
    brain[3].flat[:100] = True
    assert scored_slices(brain, TABLE1).tolist() == [2, 3]


@pytest.mark.parametrize("depth", [155, 30, 0])
def test_a_volume_without_a_slice_to_score_is_refused(depth):
    with pytest.raises(InputError, match=f"no slice.*umm-csgm-table1.*{depth} slic"):
        scored_slices(np.zeros((depth, 8, 8), bool), TABLE1)


def test_what_is_estimated_outside_the_brain_does_not_count_in_table1():
    volume = noisy_volume()
    wild = np.where(volume.brain, volume.estimate, 1e6)
    assert score(TABLE1, dataclasses.replace(volume, estimate=wild)) == score(TABLE1, volume)


def test_values_beyond_the_grey_levels_are_clipped_on_both_sides():
    volume = noisy_volume()
    estimate = volume.truth.copy()
    volume.truth[2, 5, 5], estimate[2, 5, 5] = -10.0, -900.0
    volume.truth[2, 5, 6], estimate[2, 5, 6] = 89000.0, 999999.0
    assert score(TABLE1, dataclasses.replace(volume, estimate=estimate))["mae"] == 0


def test_mm_gan_divides_each_slice_by_its_own_maximum():
    volume = noisy_volume()
    psnrs, ssims, mses = [], [], []
    for z in range(1, 14):  # the lowest slice has no brain
        a, b = volume.truth[z].clip(0), volume.estimate[z].clip(0)
        a, b = a / a.max(), b / b.max()
        psnrs.append(peak_signal_noise_ratio(a, b, data_range=1))
        ssims.append(ssim(a, b, 1.0, **GAUSSIAN))
        mses.append(np.mean((a - b) ** 2))
    expected = {"psnr": np.mean(psnrs), "ssim": np.mean(ssims), "mse": np.mean(mses)}
    close(score(by_name["mm-gan"], volume), expected)


@each_depth
def test_hi_net_stretches_each_volume_and_takes_a_range_of_two(depth):
    volume = noisy_volume((depth, 26, 22))
    a, b = volume.truth.clip(0), volume.estimate.clip(0)
    a, b = a / a.max(), b / b.max()  # the least is 0 in both
    b[a == 0] = 0
    expected = {
        "psnr": peak_signal_noise_ratio(a, b, data_range=1),
        "ssim": ssim(a, b, 2.0, win_size=7),
        "nmse": ((a - b) ** 2).sum() / (a**2).sum(),
    }
    close(score(by_name["hi-net"], volume), expected)


def test_hi_net_sees_nothing_where_the_truth_is_dark():
    volume = noisy_volume()
    wild = volume.estimate.copy()
    wild[0] = 200.0  # no truth there, and not the estimate's largest
    other = dataclasses.replace(volume, estimate=wild)
    assert score(by_name["hi-net"], other) == score(by_name["hi-net"], volume)


def test_fast_ddpm_has_whole_grey_levels_and_uniform_windows():
    volume = noisy_volume()
    volume.truth[3, 10, 8] = 5000.0  # else all is dark
    psnrs, ssims = [], []
    for z in range(1, 14):
        a, b = (
            np.rint((image[z] / 6000.0 * 255).clip(0, 255))
            for image in (volume.truth, volume.estimate)
        )
        assert len(np.unique(b)) < 100
        psnrs.append(peak_signal_noise_ratio(a, b, data_range=255))
        ssims.append(ssim(a, b, 255.0, win_size=7))
    expected = {"psnr": np.mean(psnrs), "ssim": np.mean(ssims)}
    close(score(by_name["fast-ddpm"], volume), expected)


@pytest.mark.parametrize("name", ["mm-gan", "fast-ddpm"])
def test_a_slice_without_any_error_has_no_psnr(name):
    """As where the lowest voxel of a brain is dark, or only another scan has it."""
    volume = noisy_volume()
    volume.truth[3, 10, 8] = 5000.0
    psnr = score(by_name[name], volume)["psnr"]
    volume.brain[0, 10, 10] = True  # 0 in truth and estimate
    more = score(by_name[name], volume)
    assert more["psnr"] == psnr and np.isfinite(psnr)
    same = dataclasses.replace(volume, estimate=volume.truth)
    reason = score(by_name[name], same)["psnr"]
    assert str(reason) == "truth and estimate agree in every slice"


def slow_ssim_3d(truth, estimate, span):
    """Gaussian windows of 11 x 11 x 11, one after another, as the formula has them."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.einsum("i,j,k->ijk", line, line, line)
    window /= window.sum()
    c1, c2, values = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for corner in np.ndindex(*(size - 10 for size in truth.shape)):
        x, y = (v[tuple(slice(p, p + 11) for p in corner)] for v in (truth, estimate))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        contrast = (2 * cov + c2) / (vx + vy + c2)
        values.append((2 * mx * my + c1) / (mx**2 + my**2 + c1) * contrast)
    return np.mean(values)


@pytest.mark.parametrize("gain", [0.6, 1.6])
def test_brasyn_has_its_own_percentiles_its_cuboid_and_the_range_of_the_data(gain):
    volume = noisy_volume()
    volume.truth[5, 5:12, 5:14] = -60.0  # more than 0.5 %, and the lower limit is 0
    volume.estimate[volume.tumour] *= gain  # either may have the larger range
    scaled = []
    for image in (volume.truth, volume.estimate):
        low, high = np.percentile(image, [0.5, 99.5])
        low = max(low, 0)
        scaled.append((image.clip(low, high) - low) / (high - low))
    expected = {}
    for name, region in (
        ("ssim", np.ones_like(volume.tumour)),
        ("ssim_tumour", volume.tumour),
        ("ssim_healthy", ~volume.tumour),
    ):
        a, b = (np.where(region, image, 0) for image in scaled)
        expected[name] = slow_ssim_3d(a, b, max(np.ptp(a), np.ptp(b)))
    close(score(by_name["brasyn-official"], volume), expected)


def test_the_tumour_of_brasyn_is_mostly_zeros_that_agree():
    volume = noisy_volume((40, 60, 60))
    wrong = np.where(volume.tumour, 2000 - volume.truth, volume.truth)
    volume = dataclasses.replace(volume, estimate=wrong)
    assert score(by_name["tumour"], volume)["ssim"] < 0
    assert score(by_name["brasyn-official"], volume)["ssim_tumour"] > 0.97


@each_depth
def test_volume_3d_counts_the_background(depth):
    volume = noisy_volume((depth, 26, 22))
    a, b = in_grey_levels(volume, masked=False)
    expected = {
        "psnr": peak_signal_noise_ratio(a, b, data_range=255),
        "ssim": ssim(a, b, 255.0, **GAUSSIAN),
        "mae": np.abs(a - b).mean(),
    }
    close(score(by_name["volume-3d"], volume), expected)
    assert expected["ssim"] == pytest.approx(slow_ssim_3d(a, b, 255.0), rel=1e-9)


@each_depth
@pytest.mark.parametrize("name", ["brain-only", "tumour", "healthy"])
def test_a_region_is_measured_on_its_voxels(name, depth):
    volume = noisy_volume((depth, 26, 22))
    regions = {
        "brain-only": volume.brain,
        "tumour": volume.tumour,
        "healthy": volume.brain & ~volume.tumour,
    }
    region = regions[name]
    a, b = in_grey_levels(volume)
    maps = [ssim(x, y, 255.0, full=True, **GAUSSIAN)[1] for x, y in zip(a, b, strict=True)]
    inside = region.copy()
    inside[:, :5], inside[:, -5:], inside[:, :, :5], inside[:, :, -5:] = (False,) * 4
    expected = {
        "psnr": peak_signal_noise_ratio(a[region], b[region], data_range=255),
        "ssim": np.array(maps)[inside].mean(),
        "mae": np.abs(a - b)[region].mean(),
    }
    close(score(by_name[name], volume), expected)


def test_an_estimate_that_is_five_grey_levels_too_bright():
    """Worked out by hand: 20 of 4800 voxels are bright enough to be the percentile, and
    right; the others are off by 5."""
    truth = np.zeros((12, 30, 30))
    truth[:, 5:25, 5:25] = np.linspace(10, 200, 400).reshape(20, 20)
    truth[0, 5:7, 5:15] = 255.0
    brain = truth > 0
    volume = ScoredVolume(truth, np.where(brain & (truth < 250), truth + 5, truth), brain, None)
    values = score(by_name["brain-only"], volume)
    assert values["mae"] == pytest.approx(5 * 4780 / 4800, rel=1e-9)
    mse = 25 * 4780 / 4800
    assert values["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), rel=1e-9)
    # The frame is 900 pixels, the brain 400 of them.
    whole = score(by_name["volume-3d"], volume)
    assert whole["mae"] == pytest.approx(values["mae"] * 400 / 900, rel=1e-9)
    assert whole["psnr"] - values["psnr"] == pytest.approx(10 * np.log10(2.25))
    # All 12 slices have brain on more than a fifth of the frame.
    table1 = score(by_name["umm-csgm-table1"], volume)
    assert table1["mae"] == pytest.approx(whole["mae"], rel=1e-9)
    first = 25 * 380 / 900  # the bright voxels are in one slice
    psnrs = [10 * np.log10(255**2 / e) for e in [first, *[25 * 400 / 900] * 11]]
    assert table1["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-9)


BLIND = ("mm-gan", "hi-net", "brasyn-official")


@each_profile
def test_who_sees_that_an_estimate_is_twice_as_bright(profile):
    one, two = noisy_volume(gain=1.0), noisy_volume(gain=2.0)
    one.truth[3, 10, 8] = two.truth[3, 10, 8] = 5000.0
    values, doubled = score(profile, one), score(profile, two)
    if profile.name in BLIND:
        assert doubled == pytest.approx(values, rel=1e-9)
    else:
        assert doubled["psnr"] < values["psnr"] - 5
        name = "ssim_wang" if profile is TABLE1 else "ssim"
        assert doubled[name] < values[name] - 0.1


@each_profile
def test_another_contrast_is_seen(profile):
    volume = noisy_volume()
    volume.truth[3, 10, 8] = 5000.0
    inverted = np.where(volume.brain, 2000 - volume.truth.clip(0, 1900), 0)
    other = score(profile, dataclasses.replace(volume, estimate=inverted))
    for name, value in score(profile, volume).items():
        if name == "psnr":
            assert other[name] < value - 2
        elif name == "ssim_tumour":  # whatever is in it, see above
            assert other[name] < value
        elif name.startswith("ssim"):
            assert other[name] < value - 0.1, name
        else:
            assert other[name] > 1.5 * value, name


@each_profile
def test_units_cancel(profile):
    volume = noisy_volume()
    others = dataclasses.replace(volume, truth=volume.truth * 8, estimate=volume.estimate * 8)
    assert score(profile, others) == pytest.approx(score(profile, volume), rel=1e-9)


def test_frames_of_brats_are_cropped_as_the_code_of_each_does():
    """LPS as BraTS stores it: rows from the anterior, columns from the right."""
    rng = np.random.default_rng(5)
    stored = rng.uniform(1, 2, (2, 240, 240))  # z, x from the right, y from the front
    ours = stored.transpose(0, 2, 1)[:, ::-1, ::-1]
    volume = ScoredVolume(ours, ours[::-1], np.ones(ours.shape, bool), None)
    crops = {"mm-gan": np.s_[:, 41:196, 29:223], "hi-net": np.s_[:, 40:200, 20:200]}
    for name, part in crops.items():
        cropped = protocols._cropped(by_name[name].crop, volume)
        expected = stored[part].transpose(0, 2, 1)[:, ::-1, ::-1]
        assert np.array_equal(cropped.truth, expected), name
        assert np.array_equal(cropped.estimate, expected[::-1]), name
        values = score(by_name[name], volume)
        assert str(values) == str(score(by_name[name], cropped))
        uncropped = dataclasses.replace(by_name[name], crop=None)
        assert values["psnr"] != score(uncropped, volume)["psnr"]
    assert cropped.brain.shape == cropped.truth.shape == (2, 180, 160)


def test_a_region_is_that_of_the_slices_that_count():
    volume = noisy_volume()
    profile = dataclasses.replace(protocols.TUMOUR, slices=protocols.Slices(14, 6, 9, 0))
    a, b = in_grey_levels(volume)
    part = np.s_[6:8, 8:13, 9:15]  # the tumour lies in slices 4 to 7
    expected = np.abs(a - b)[part].mean()
    assert score(profile, volume)["mae"] == pytest.approx(expected, rel=1e-9)


def test_mm_gan_leaves_out_the_top_slices_of_brats():
    rng = np.random.default_rng(6)
    truth = rng.uniform(1, 2, (155, 12, 12))
    estimate = truth + rng.normal(0, 0.05, truth.shape)
    wrong = np.where(np.arange(155)[:, None, None] > 147, 1.0, estimate)
    brain = np.ones(truth.shape, bool)
    plain, other = (
        score(by_name["mm-gan"], ScoredVolume(truth, image, brain, None))
        for image in (estimate, wrong)
    )
    assert plain == other
    full = score(by_name["fast-ddpm"], ScoredVolume(truth, wrong, brain, None))
    assert full != score(by_name["fast-ddpm"], ScoredVolume(truth, estimate, brain, None))


def test_where_nothing_can_be_measured_a_reason_stands():
    free = noisy_volume(tumour=False)
    tumour = score(by_name["tumour"], free)
    assert {name: str(reason) for name, reason in tumour.items()} == dict.fromkeys(
        ["psnr", "ssim", "mae"], "tumour-free"
    )
    official = score(by_name["brasyn-official"], free)
    assert str(official["ssim_tumour"]) == "tumour-free"
    assert official["ssim_healthy"] == official["ssim"]
    whole = score(by_name["brain-only"], free)
    assert score(by_name["healthy"], free) == whole
    bare = dataclasses.replace(free, tumour=None)
    assert {str(reason) for reason in score(by_name["healthy"], bare).values()} == {
        "no segmentation"
    }
    assert str(score(by_name["tumour"], bare)["psnr"]) == "no segmentation"
    flat = noisy_volume(shape=(9, 26, 22))
    values = score(by_name["volume-3d"], flat)
    assert "9 x 26 x 22 voxels are fewer than" in str(values["ssim"])
    assert isinstance(values["psnr"], float)
    dark = dataclasses.replace(free, truth=free.truth * 0)
    assert "nothing to scale by" in str(score(by_name["brain-only"], dark)["mae"])


def test_the_definitions_are_those_of_before():
    assert {profile.name: profile_hash(profile) for profile in PROFILES} == HASHES


@each_profile
def test_any_change_of_a_definition_changes_its_hash(profile):
    changes = {
        "name": "other",
        "text": profile.text + ".",
        "crop": protocols.Crop((5, 5), (1, 2), (1, 2)),
        "scaling": "own percentiles"
        if profile.scaling != "own percentiles"
        else "truth's percentile",
        "percentiles": (*profile.percentiles, 98.0),
        "peak": profile.peak + 1,
        "background": "kept" if profile.background != "kept" else "0 outside the brain",
        "slices": protocols.Slices(1, 2, 3, 0.4),
        "measures": profile.measures[:-1],
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(profile)}
    hashes = [profile_hash(dataclasses.replace(profile, **{k: v})) for k, v in changes.items()]
    for index, measure in enumerate(profile.measures):
        for change in (
            {"name": "other"},
            {"function": "mse of slices"}
            if measure.function != "mse of slices"
            else {"function": "psnr of slices"},
            {"span": 7.0},
            {"region": "brain" if measure.region != "brain" else "frame"},
        ):
            measures = list(profile.measures)
            measures[index] = dataclasses.replace(measure, **change)
            hashes.append(profile_hash(dataclasses.replace(profile, measures=tuple(measures))))
    assert len({profile_hash(profile), *hashes}) == 1 + len(hashes)


def test_a_new_version_of_a_function_changes_who_names_it(monkeypatch):
    before = {profile.name: profile_hash(profile) for profile in PROFILES}

    def changed():
        return {p.name for p in PROFILES if profile_hash(p) != before[p.name]}

    for table, key, users in (
        (metrics.METRICS, "uniform ssim in the plane", {"fast-ddpm"}),
        (protocols.SCALINGS, "own slice maximum", {"mm-gan"}),
        (protocols.REGIONS, "tumour", {"tumour", "brasyn-official"}),
        (
            protocols.BACKGROUNDS,
            "0 outside the brain",
            {"umm-csgm-table1", "brain-only", "tumour", "healthy"},
        ),
    ):
        function, version = table[key]
        with monkeypatch.context() as patch:
            patch.setitem(table, key, (function, version + 1))
            assert changed() == users
    monkeypatch.setattr(protocols, "SCORER_VERSION", protocols.SCORER_VERSION + 1)
    assert changed() == set(before)


@each_profile
def test_a_metric_of_slices_has_no_region_but_the_frame(profile):
    for measure in profile.measures:
        if measure.function.endswith(("of slices", "of the volume")):
            assert measure.region == "frame"
