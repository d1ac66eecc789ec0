"""The phantom: its physics by hand, its anatomy in mm, its files byte for byte."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.known import named_layouts
from ummcsgm.data.nifti import read_volume
from ummcsgm.data.phantom import make as phantom
from ummcsgm.data.phantom.make import (
    FIELD_OF_VIEW,
    check_shape,
    make_phantom,
    make_subject,
    streams,
    write_phantom,
)
from ummcsgm.data.phantom.physics import (
    TISSUES,
    Maps,
    Sequence,
    Tissue,
    compose,
    draw_bias,
    draw_protocol,
    draw_tissues,
    inversion_recovery,
    measure,
    null_time,
    scan,
    signal,
    spin_echo,
    take_up,
)
from ummcsgm.data.phantom.shapes import Points, ellipsoid, ring_noise, tube
from ummcsgm.data.phantom.truth import draw_truth, read_truth, truth_path
from ummcsgm.data.phantom.tumour import Tumour, Uptake, draw_dose, draw_uptake, grade
from ummcsgm.types import InputError

SHAPE = (64, 64, 40)
TINY = (32, 32, 8)
SEED, ENHANCING = 0, 4  # a subject whose tumour is necrotic and enhances as a ring


@pytest.fixture(scope="module")
def subject():
    return make_subject(SEED, ENHANCING, SHAPE)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*.gz"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------- physics


def test_a_spin_echo_has_the_signal_worked_out_by_hand():
    # 0.8 (1 - e^-0.5) e^-0.2 = 0.8 x 0.39346934 x 0.81873075
    found = spin_echo(Tissue(0.8, 1000.0, 100.0), Sequence(500.0, 20.0, None))
    assert found == pytest.approx(0.25771637, rel=1e-7)


def test_an_inversion_recovery_has_the_signal_worked_out_by_hand():
    # |1 - 2 e^-0.5 + e^-2| e^-1 = 0.07772604 x 0.36787944
    found = inversion_recovery(Tissue(1.0, 1000.0, 100.0), Sequence(2000.0, 100.0, 500.0))
    assert found == pytest.approx(0.02859381, rel=1e-6)


def test_signal_is_a_spin_echo_only_without_an_inversion_time():
    tissue = Tissue(0.8, 1000.0, 100.0)
    echo, inverted = Sequence(500.0, 20.0, None), Sequence(500.0, 20.0, 300.0)
    assert signal(tissue, echo) == spin_echo(tissue, echo)
    assert signal(tissue, inverted) == inversion_recovery(tissue, inverted)


def test_gadolinium_adds_its_rate_to_both_relaxation_rates():
    found = take_up(Tissue(0.8, 1000.0, 100.0), np.array([0.0, 0.5]))
    # 1 + 4.5 x 0.5 = 3.25 per s, and 10 + 5.5 x 0.5 = 12.75 per s
    np.testing.assert_allclose(found.t1, [1000.0, 1000 / 3.25], rtol=1e-12)
    np.testing.assert_allclose(found.t2, [100.0, 1000 / 12.75], rtol=1e-12)
    assert found.pd == 0.8


def test_nothing_is_left_of_a_fluid_at_its_null_time():
    for t1, tr in ((4200.0, 9000.0), (3800.0, 6500.0)):
        sequence = Sequence(tr, 100.0, null_time(t1, tr))
        assert inversion_recovery(Tissue(1.0, t1, 2000.0), sequence) < 1e-12


def test_a_layer_covers_what_lies_below_by_its_share():
    tissues = {
        "white": Tissue(0.6, 600.0, 80.0),
        "grey": Tissue(0.8, 1000.0, 100.0),
        "tumour": Tissue(0.9, 1400.0, 130.0),
        "fluid": Tissue(1.0, 4000.0, 2000.0),
    }
    layers = [("grey", 0.5), ("fluid", 0.25), ("tumour", 0.5)]
    maps = compose([(n, np.array([v], np.float32)) for n, v in layers], tissues)
    # fluid 0.25 x 0.5; tumour is 0.5 of the 0.875 that is not fluid
    weight = 0.5 / 0.875
    assert maps.wet[0] == pytest.approx(0.125)
    assert maps.dry.pd[0] == pytest.approx(0.7 + weight * 0.2)
    assert maps.dry.t1[0] == pytest.approx(800 + weight * 600)
    assert maps.dry.t2[0] == pytest.approx(90 + weight * 40)


def test_half_fluid_gives_half_of_both_signals_and_so_no_bright_rim():
    white, fluid = TISSUES["white"], TISSUES["fluid"]
    flair = Sequence(9000.0, 112.0, null_time(fluid.t1, 9000.0))
    found = scan(Maps(white, np.array([0.0, 0.5, 1.0]), fluid, white), flair)
    np.testing.assert_allclose(found[1], found[[0, 2]].mean(), rtol=1e-12)
    assert found[1] < found[0]


@pytest.mark.parametrize(
    ("modality", "order"),
    [
        ("t1", ["white", "brainstem", "thalamus", "grey", "oedema", "necrosis"]),
        ("t1", ["necrosis", "fluid"]),
        ("t2", ["fluid", "necrosis", "oedema", "grey", "white", "pallidum"]),
        ("flair", ["oedema", "tumour", "grey", "white", "fluid"]),
    ],
)
def test_the_tissues_of_most_subjects_have_the_contrasts_radiologists_know(modality, order):
    signals = []
    for seed in range(40):
        tissues = draw_tissues(np.random.default_rng([seed, 0]))
        sequence = draw_protocol(np.random.default_rng([seed, 1]))[modality]
        signals.append([signal(tissues[name], sequence) for name in order])
    falling = np.diff(np.array(signals), axis=1) < 0
    assert (falling.mean(0) > 0.75).all(), dict(zip(order, falling.mean(0), strict=False))
    assert (np.diff(np.median(signals, axis=0)) < 0).all()


def test_protocols_differ_by_about_a_tenth_between_subjects():
    drawn = [draw_protocol(np.random.default_rng(seed)) for seed in range(200)]
    for modality in ("flair", "t1", "t2"):
        for field in ("tr", "te"):
            times = np.array([getattr(d[modality], field) for d in drawn])
            assert 0.05 < times.std() / times.mean() < 0.10, (modality, field)


def test_noise_is_rician_with_the_stated_ratio_to_white_matter():
    shape = (48, 48, 48)
    even = np.ones(shape)
    empty = measure(np.random.default_rng(0), np.zeros(shape, np.float32), 0.3, even, 1.0)
    # Rayleigh: mean / sd = sqrt(pi / 2) / sqrt(2 - pi / 2) = 1.913
    assert empty.mean() / empty.std() == pytest.approx(1.913, rel=0.02)
    for seed in range(6):
        flat = np.full(shape, 0.3, np.float32)
        image = measure(np.random.default_rng(seed), flat, 0.3, even, 1.0).astype(float)
        noise = np.diff(image, axis=2).std() / np.sqrt(2)
        assert 17 < image.mean() / noise < 34
        larger = measure(np.random.default_rng(seed), flat, 0.3, even, 9.0)
        less = np.diff(larger.astype(float), axis=2).std() / np.sqrt(2)
        assert larger.mean() / less == pytest.approx(3 * image.mean() / noise, rel=0.03)


def test_the_bias_is_the_coils_and_little_of_the_sequence():
    for seed in range(6):
        # twenty times white matter, so that noise hardly shows
        flat = np.full((48, 48, 48), 6.0, np.float32)
        coil = draw_bias(np.random.default_rng(100 + seed), flat.shape, 0.07, 0.17)
        images = [
            measure(np.random.default_rng(key), flat, 0.3, coil, 1.0).astype(float)
            for key in (seed, 50 + seed)
        ]
        ratio = images[0] / images[1]
        assert 0.005 < ratio.std() / ratio.mean() < 0.06
        bias = images[0] / images[0].mean()
        assert 0.05 < bias.std() < 0.2
        assert np.abs(np.diff(bias, axis=0)).max() < 0.08
        assert 0.5 < bias.min() and bias.max() < 2


# ------------------------------------------------------------------- shapes


def test_depths_are_distances_to_the_surface():
    x = np.array([0.0, 9.0, 10.0, 11.0], np.float32)
    zero = np.zeros_like(x)
    np.testing.assert_allclose(
        ellipsoid(x, zero, zero, (10.0, 20.0, 30.0))[1:], [1, 0, -1], atol=1e-4
    )
    pipe = tube(x, zero, zero, [(0, 0, -5, 4.0), (0, 0, 5, 4.0)])
    np.testing.assert_allclose(pipe, [4, -5, -6, -7], atol=1e-5)


def test_the_slopes_of_ring_noise_are_its_derivatives():
    value, *slopes = ring_noise(np.random.default_rng(0), 24.0, 0.2)
    assert value.std() == pytest.approx(1, abs=1e-3)
    for axis, slope in enumerate(slopes):
        # central differences per radian of a 24 mm wave, on a 2.9 mm lattice
        rise = np.roll(value, -1, axis) - np.roll(value, 1, axis)
        rise = rise / (2 * 2.9) * 24 / (2 * np.pi)
        gain = (rise * slope).sum() / (slope**2).sum()
        assert 0.85 < gain < 1.0  # a central difference falls short by sin(kh) / kh


# ------------------------------------------------------------------- subjects


def test_a_subject_has_four_integer_images_and_a_segmentation_of_brats_labels(subject):
    assert list(subject.images) == ["flair", "t1", "t1c", "t2"]
    assert {(v.dtype, v.shape) for v in subject.images.values()} == {(np.dtype(np.int16), SHAPE)}
    assert subject.segmentation.dtype == np.uint8
    assert set(np.unique(subject.segmentation)) == {0, 1, 2, 4}
    assert (subject.name, subject.grade) == ("BraTS19_PHANTOM_0005_1", "HGG")


def test_the_background_is_zero_and_the_same_for_all_modalities(subject):
    brains = [image > 0 for image in subject.images.values()]
    assert all((image >= 0).all() for image in subject.images.values())
    assert all((brain == brains[0]).all() for brain in brains)
    assert not subject.segmentation[~brains[0]].any()
    edge = np.ones(SHAPE, bool)
    edge[4:-4, 4:-4, :] = False
    assert not brains[0][edge].any()


@pytest.mark.parametrize("index", range(4))
@pytest.mark.slow
def test_a_brain_is_as_large_as_a_human_one(index):
    brain = make_subject(1, index, TINY).images["t1"] > 0
    assert 0.25 < brain[:, :, 4].mean() < 0.42
    litres = brain.mean() * 240 * 240 * 155 / 1e6
    assert 1.1 < litres < 1.95
    extent = [brain.any(axis=(1, 2)), brain.any(axis=(0, 2)), brain.any(axis=(0, 1))]
    across, along, up = (e.mean() * f for e, f in zip(extent, FIELD_OF_VIEW, strict=True))
    assert 127 <= across <= 158 and 150 <= along <= 195 and 116 <= up <= 155


def test_fluid_is_dark_on_t1_and_flair_where_it_is_bright_on_t2(subject):
    images = {m: v.astype(float) for m, v in subject.images.items()}
    brain = (images["t1"] > 0) & (subject.segmentation == 0)
    inner = np.zeros(SHAPE, bool)
    inner[24:40, 20:44, 18:26] = True  # about the ventricles
    t2 = images["t2"][brain & inner]
    fluid = brain & inner & (images["t2"] > np.percentile(t2, 97))
    for modality, share in (("t1", 0.75), ("flair", 0.75)):
        typical = np.median(images[modality][brain & inner])
        assert images[modality][fluid].mean() < share * typical, modality


def test_white_matter_is_brighter_than_cortex_on_t1_and_darker_on_t2(subject):
    t1, t2 = (subject.images[m].astype(float) for m in ("t1", "t2"))
    brain = (t1 > 0) & (subject.segmentation == 0)
    assert np.corrcoef(t1[brain], t2[brain])[0, 1] < -0.5


def test_oedema_is_bright_on_flair_and_necrosis_dark_on_t1(subject):
    flair, t1 = (subject.images[m].astype(float) for m in ("flair", "t1"))
    healthy = (t1 > 0) & (subject.segmentation == 0)
    oedema, core = subject.segmentation == 2, subject.segmentation == 1
    assert flair[oedema].mean() > 1.15 * np.median(flair[healthy])
    assert t1[core].mean() < 0.85 * np.median(t1[healthy])


def test_crossing_the_brain_meets_many_sulci_that_are_bright_on_t2():
    counts = []
    for subject in range(3):
        t2 = make_subject(0, subject, (120, 120, 20)).images["t2"].astype(float)
        rows = np.where(t2 > 0, t2, np.nan)[30:90, 22:102, 12]
        here, before, after = rows[:, 2:-2], rows[:, :-4], rows[:, 4:]
        peak = (here > 1.1 * before) & (here > 1.1 * after)  # no wider than 8 mm
        peak &= (here >= rows[:, 1:-3]) & (here > rows[:, 3:-1])
        counts.append(peak.sum(axis=1).mean())
    # 160 mm from front to back; ventricles and noise alone would give one or two
    assert 3.2 < np.mean(counts) < 12


@pytest.mark.slow
def test_two_shapes_show_the_same_brain():
    fine, coarse = (make_subject(2, 1, shape) for shape in (SHAPE, (32, 32, 20)))
    for modality in ("t1", "t2"):
        blocks = fine.images[modality].astype(float).reshape(32, 2, 32, 2, 20, 2)
        mean, seen = blocks.mean(axis=(1, 3, 5)), coarse.images[modality]
        both = (mean > 0) & (seen > 0)
        assert both.sum() > 0.9 * (seen > 0).sum()
        assert np.corrcoef(mean.ravel(), seen.ravel())[0, 1] > 0.95
        assert np.corrcoef(mean[both], seen[both])[0, 1] > 0.6


def test_subjects_and_seeds_differ_in_anatomy_and_an_index_repeats_exactly():
    first, again = make_subject(0, 0, TINY), make_subject(0, 0, TINY)
    assert all((again.images[m] == v).all() for m, v in first.images.items())
    brain = first.images["t1"] > 0
    for seed, index in ((0, 1), (1, 0)):
        other = make_subject(seed, index, TINY).images["t1"] > 0
        assert (other != brain).mean() > 0.005


# ------------------------------------------------------------------- gadolinium


def test_another_draw_of_gadolinium_changes_t1c_and_no_bit_of_the_rest(subject):
    keys = streams(SEED, ENHANCING)
    keys["gadolinium"] = np.random.default_rng(7)
    other = make_phantom(keys, subject.name, SHAPE)
    for modality in ("flair", "t1", "t2"):
        assert (other.images[modality] == subject.images[modality]).all()
    assert (other.images["t1c"] != subject.images["t1c"]).any()
    tumour = np.isin(subject.segmentation, (1, 4))
    assert (np.isin(other.segmentation, (1, 4)) == tumour).all()


@pytest.mark.parametrize(
    ("stream", "changed"),
    [("t1", {"t1"}), ("flair", {"flair"}), ("protocol", {"flair", "t1", "t1c", "t2"})],
)
@pytest.mark.slow
def test_a_stream_reaches_only_what_it_is_named_after(stream, changed):
    plain = make_phantom(streams(0, 1), "a", TINY)
    keys = streams(0, 1)
    keys[stream] = np.random.default_rng(7)
    other = make_phantom(keys, "a", TINY)
    assert (other.segmentation == plain.segmentation).all()
    found = {m for m, v in plain.images.items() if (v != other.images[m]).any()}
    assert found == changed


def test_t1c_is_like_t1_but_where_tissue_enhances(subject):
    t1, t1c = (subject.images[m].astype(float) for m in ("t1", "t1c"))
    brain = t1 > 0
    ratio = t1c / np.maximum(t1, 1)
    ratio /= np.median(ratio[brain])
    plain = brain & (subject.segmentation == 0)
    assert np.median(ratio[subject.segmentation == 4]) > 1.4
    assert np.mean(np.abs(ratio[plain] - 1) < 0.3) > 0.93


def flat_tumour(necrosis: float) -> tuple[Tumour, Points]:
    depth = np.linspace(-5, 15, 400, dtype=np.float32)
    dead = np.full_like(depth, necrosis)
    solid = (depth > 0).astype(np.float32)
    tumour = Tumour(necrosis > 0, depth, 0 * depth, solid, dead, [])
    positions = np.random.default_rng(0).uniform(-90, 90, (3, 400)).astype(np.float32)
    return tumour, Points(*positions, 1.0)


@pytest.mark.slow
def test_uptake_is_drawn_alike_for_dead_and_for_living_tumours():
    patterns = []
    for seed in range(20):
        drawn = []
        for necrosis in (0.0, 1.0):
            tumour, at = flat_tumour(necrosis)
            key = np.random.default_rng(seed)
            drawn.append(draw_uptake(key, tumour, at, 0 * at.x))
        alive, dead = drawn
        patterns.append(alive.pattern)
        assert alive.pattern == dead.pattern
        np.testing.assert_allclose(dead.tumour, 0.1 * alive.tumour, atol=1e-6)
        assert not alive.tumour[tumour.depth < 0].any()
        assert (alive.tumour.max() == 0) == (alive.pattern == "none")
    assert set(patterns) == {"ring", "solid", "patchy", "none"}


def test_a_ring_takes_up_at_the_rim_and_a_solid_tumour_throughout():
    tumour, at = flat_tumour(0.0)
    rim, middle = (tumour.depth > 0.5) & (tumour.depth < 1.5), tumour.depth > 12
    checked_patterns = set()
    for seed in range(20):
        key = np.random.default_rng(seed)
        uptake = draw_uptake(key, tumour, at, np.ones_like(at.x))
        if uptake.pattern == "ring":
            assert uptake.tumour[middle].mean() < 0.1 * uptake.tumour[rim].mean()
        if uptake.pattern == "solid":
            assert uptake.tumour[middle].min() > 0.3 * uptake.tumour[rim].mean()
        blood = uptake.total - uptake.tumour
        assert 0.4 <= blood.min() + 1e-5 and blood.max() <= 2.5
        checked_patterns.add(uptake.pattern)
    assert {"ring", "solid"} <= checked_patterns


def test_the_grade_is_low_only_without_necrosis_and_without_full_enhancement():
    zero = np.zeros(1)
    low = set()
    for necrosis in (0.0, 1.0):
        for pattern in ("ring", "solid", "patchy", "none"):
            if grade(flat_tumour(necrosis)[0], Uptake(pattern, zero, zero)) == "LGG":
                low.add((necrosis, pattern))
    assert low == {(0.0, "patchy"), (0.0, "none")}


# ------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    made = write_phantom(folder, subjects=3, shape=TINY, seed=5, processes=1)
    return folder, made


def test_the_files_lie_as_in_brats_2019(written):
    folder, made = written
    for index, path in enumerate(made):
        name = f"BraTS19_PHANTOM_{index + 1:04d}_1"
        assert path.name == name and path.parent.name in ("HGG", "LGG")
        assert path.parent.parent == folder
        endings = ("flair", "seg", "t1", "t1ce", "t2")
        expected = {f"{name}_{ending}.nii.gz" for ending in endings} | {f"{name}_phantom.json"}
        assert {file.name for file in path.iterdir()} == expected
    assert sorted(p.name for p in folder.glob("*/*")) == [p.name for p in made]


def test_the_files_read_back_as_the_subject_with_its_field_of_view(written):
    subject = make_subject(5, 1, TINY)
    endings = {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2", "seg": "seg"}
    for modality, ending in endings.items():
        file = written[1][1] / f"{subject.name}_{ending}.nii.gz"
        volume, geometry = read_volume(file)
        stored = (subject.images | {"seg": subject.segmentation})[modality]
        # stored to the left, to the back, up; read as z, y, x to the right and front
        np.testing.assert_array_equal(volume, stored[::-1, ::-1].transpose(2, 1, 0))
        size = (240 / 32, 240 / 32, 155 / 8)
        assert np.allclose(np.diag(geometry.affine), [-size[0], -size[1], size[2], 1])
        assert geometry.affine[:3, 3] == pytest.approx([0, 240 - size[1], 0])


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(written, tmp_path):
    made = write_phantom(tmp_path, subjects=3, shape=TINY, seed=5, processes=2)
    assert [p.relative_to(tmp_path) for p in made] == [
        p.relative_to(written[0]) for p in written[1]
    ]
    assert bytes_of(tmp_path) == bytes_of(written[0])


def test_a_finished_subject_is_not_made_again(written, monkeypatch):
    monkeypatch.setattr(phantom, "make_subject", None)
    again = write_phantom(written[0], subjects=2, shape=TINY, seed=5, processes=1)
    assert again == written[1][:2]


KILLED = """
import os, sys
from pathlib import Path
from ummcsgm.data.phantom import make as phantom
files = []
write_new = phantom.write_new
def write_or_die(path, volume, affine):
    files.append(path)
    if len(files) == 8:
        os._exit(9)
    write_new(path, volume, affine)
phantom.write_new = write_or_die
phantom.write_phantom(
    Path(sys.argv[1]), subjects=3, shape=(32, 32, 8), seed=5, processes=1
)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_subject_and_the_next_one_goes_on(written, tmp_path):
    root = str(Path(phantom.__file__).parents[3])
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        check=False,
    )
    assert run.returncode == 9
    whole = [p for grade in ("HGG", "LGG") for p in tmp_path.glob(f"{grade}/*")]
    assert [p.name for p in whole] == ["BraTS19_PHANTOM_0001_1"]
    before = next(whole[0].iterdir()).stat().st_mtime_ns
    made = write_phantom(tmp_path, subjects=3, shape=TINY, seed=5, processes=1)
    assert next(made[0].iterdir()).stat().st_mtime_ns == before
    found = {k: v for k, v in bytes_of(tmp_path).items() if not k.startswith(".")}
    assert found == bytes_of(written[0])


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, volume, affine):
        path.parent.mkdir()
        path.write_bytes(b"the first of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(phantom, "write_new", full)
    with pytest.raises(OSError, match="No space"):
        write_phantom(tmp_path, subjects=1, shape=TINY, seed=5, processes=1)
    assert [p.name for p in tmp_path.iterdir()] == ["phantom.json"]


# ------------------------------------------------------------------- known truth


def test_patterns_and_amounts_are_drawn_as_the_truth_says():
    """Against the numbers of the issue itself: a law changed in the source is found."""
    law = {"none": 0.25, "ring": 0.36, "solid": 0.10, "patchy": 0.29}
    doses = [draw_dose(streams(0, index)["gadolinium"]) for index in range(4000)]
    drawn = [dose.pattern for dose in doses]
    counts = [drawn.count(pattern) for pattern in law]
    assert stats.chisquare(counts, 4000 * np.array([*law.values()])).pvalue > 1e-3
    amounts = np.log([dose.amount for dose in doses])
    uniform = stats.uniform(np.log(0.15), np.log(1.2 / 0.15))
    assert stats.kstest(amounts, uniform.cdf).pvalue > 1e-3
    truth = draw_truth(streams(0, 0))
    assert truth.probabilities == law and truth.probability == pytest.approx(0.75)
    assert truth.amount_law == (0.15, 1.2)


def test_enhancement_is_independent_of_the_tumour_and_its_seat():
    truths = [draw_truth(streams(1, index)) for index in range(1500)]
    for split in (
        [truth.necrotic for truth in truths],
        [truth.centre[0] > 0 for truth in truths],
        [truth.radius > 15 for truth in truths],
    ):
        table = np.zeros((2, 2))
        for truth, side in zip(truths, split, strict=True):
            table[int(truth.enhances), int(side)] += 1
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_truth_beside_a_subject_is_what_made_its_scans(written, monkeypatch):
    """Every part as make_phantom itself draws it, and a low grade only if it may be low."""
    seen = {}

    def spy(name, real, *arguments):
        seen[name] = real(*arguments)
        return seen[name]

    for name in ("draw_seat", "draw_tumour", "draw_uptake"):
        monkeypatch.setattr(phantom, name, partial(spy, name, getattr(phantom, name)))
    for index, folder in enumerate(written[1]):
        made, truth = make_subject(5, index, TINY), read_truth(folder)
        seat, tumour, uptake = (seen[f"draw_{name}"] for name in ("seat", "tumour", "uptake"))
        assert (truth.pattern, truth.necrotic) == (uptake.pattern, tumour.necrotic)
        assert (truth.centre, truth.radius) == (seat.centre, seat.radius)
        assert truth.enhances == bool((uptake.tumour > 0).any())
        assert uptake.tumour.max() <= 1.6 * truth.amount
        assert (made.grade == "HGG") == (truth.necrotic or truth.pattern in ("ring", "solid"))


def test_subjects_of_an_earlier_version_get_their_truth_and_keep_their_scans(
    written, tmp_path, monkeypatch
):
    folder = tmp_path / "earlier"
    shutil.copytree(written[0], folder)
    for file in folder.glob("*/*/*_phantom.json"):
        file.unlink()
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*.gz")}
    monkeypatch.setattr(phantom, "make_subject", None)
    made = write_phantom(folder, subjects=3, shape=TINY, seed=5, processes=1)
    assert [read_truth(path) for path in made] == [read_truth(path) for path in written[1]]
    assert None not in [read_truth(path) for path in made]
    assert times == {file: file.stat().st_mtime_ns for file in folder.rglob("*.gz")}


def test_the_truth_is_no_scan_and_a_patient_has_none(written, tmp_path):
    result = find_subjects(written[0], named_layouts())
    assert len(result.subjects) == 3 and not result.problems and not result.unused_files
    files = {file.name for s in result.subjects for file in [*s.files.values(), s.segmentation]}
    assert len(files) == 15 and all(name.endswith(".nii.gz") for name in files)
    assert read_truth(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"pattern": "ring"}', "null"]
    + [json.dumps({"probabilities": {"none": p, "ring": 0.36}}) for p in (0.25, -0.1, None)],
)
def test_a_damaged_truth_is_an_input_error(written, tmp_path, content):
    path = truth_path(tmp_path)
    whole = json.loads(truth_path(written[1][0]).read_text())
    changed = content
    if content.startswith('{"prob'):
        changed = json.dumps(whole | json.loads(content))
    path.write_text(changed)
    with pytest.raises(InputError, match=f"{path.name}.*remove it"):
        read_truth(tmp_path)


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "shape",
    [(32, 32), (31, 32, 8), (32, 32, 7), (241, 240, 155), (32, 32, 156), (64, 64, -1)]
    + [(32.0, 32, 8), ("32", 32, 8)],
)
def test_a_shape_that_holds_no_brain_is_an_input_error(shape):
    with pytest.raises(InputError, match="shape is .* at most"):
        make_subject(0, 0, shape)


@pytest.mark.slow
def test_the_smallest_and_the_largest_shapes_are_accepted():
    assert check_shape((32, 32, 8)) == (32, 32, 8)
    assert check_shape(np.array([240, 240, 155])) == (240, 240, 155)


@pytest.mark.parametrize(("name", "value"), [("subjects", 0), ("processes", 0), ("seed", -1)])
def test_a_number_too_small_is_named_and_writes_nothing(tmp_path, name, value):
    numbers = {"subjects": 1, "processes": 1, "seed": 0} | {name: value}
    with pytest.raises(InputError, match=f"{name} is {value}; .* at least {value + 1}"):
        write_phantom(tmp_path / "new", shape=TINY, **numbers)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("seed", "shape"), [(6, TINY), (5, (32, 32, 9))])
def test_a_folder_is_not_continued_with_another_seed_or_shape(written, seed, shape):
    with pytest.raises(InputError, match="holds the phantom of"):
        write_phantom(written[0], subjects=1, shape=shape, seed=seed, processes=1)
