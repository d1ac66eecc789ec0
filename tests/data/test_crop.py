"""`crop` and `uncrop` are each other's exact inverse, wherever the grid lies.

Where a pixel is not a voxel, they are so within the error that `uncrop` states.
"""

import json
from dataclasses import asdict
from functools import cache
from itertools import product

import numpy as np
import pytest

from ummcsgm.data.crop import CropWindow, brain_mask, crop, crop_around, crop_mask, uncrop
from ummcsgm.data.phantom.make import make_subject
from ummcsgm.types import InputError

FRAME = (11, 14)  # Y, X


def brain(y, x, depth=3):
    mask = np.zeros((depth, *FRAME), bool)
    mask[1, y[0] : y[1], (x[0] + x[1]) // 2] = True
    mask[2, (y[0] + y[1]) // 2, x[0] : x[1]] = True
    return mask


def volume(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("grid", [(11, 14), (16, 16), (12, 20), (40, 40)])
def test_what_is_cropped_and_uncropped_is_the_brain_bitwise(grid):
    rows = ((0, 4), (3, 9), (8, 11), (0, 11), (10, 11))
    columns = ((0, 5), (4, 11), (13, 14), (0, 14))
    for y, x in product(rows, columns):
        mask = brain(y, x)
        values = volume(mask.shape)
        window = crop_around(mask, grid)
        slices = crop(window, values)
        again = uncrop(window, slices)
        assert slices.shape == (3, *grid) and again.shape == values.shape
        assert np.array_equal(again[mask], values[mask])
        assert crop(window, mask).sum() == mask.sum()


@pytest.mark.parametrize("origin", [(-3, -2), (0, 0), (5, 9), (-1, 6), (4, 3)])
def test_what_is_uncropped_and_cropped_is_itself_within_the_frame(origin):
    window = CropWindow((6, 8), origin, FRAME)
    slices = volume((2, 3, 6, 8))
    again = crop(window, uncrop(window, slices))
    for y in range(6):
        for x in range(8):
            inside = 0 <= origin[0] + y < FRAME[0] and 0 <= origin[1] + x < FRAME[1]
            expected = slices[..., y, x] if inside else 0 * slices[..., y, x]
            assert np.array_equal(again[..., y, x], expected)


def test_a_voxel_lands_where_the_origin_says_and_padding_is_zero():
    window = CropWindow((6, 8), (-2, 9), FRAME)
    ones = np.ones((1, *FRAME), np.float32)
    ones[0, 1, 10] = 5
    slices = crop(window, ones)[0]
    assert slices[3, 1] == 5
    assert (slices[:2] == 0).all() and (slices[:, 5:] == 0).all()
    assert (slices[2:, :5] != 0).all()
    pasted = uncrop(window, slices[None])[0]
    assert pasted[1, 10] == 5 and np.count_nonzero(pasted) == 4 * 5


def test_the_window_is_centred_on_the_brain():
    window = crop_around(brain((2, 6), (3, 9)), (8, 10))
    assert window == CropWindow((8, 10), (0, 1), FRAME)
    assert crop_around(brain((2, 6), (3, 9)), (10, 20)).origin == (-1, -4)


def test_a_brain_that_is_larger_than_the_grid_is_refused_with_both_sizes():
    mask = brain((1, 10), (2, 7))
    assert crop_around(mask, (9, 5)).origin == (1, 2)
    for grid in ((8, 5), (9, 4)):
        with pytest.raises(InputError) as error:
            crop_around(mask, grid)
        for word in ("9 x 5", f"{grid[0]} x {grid[1]}", "config.data.grid"):
            assert word in str(error.value)


def test_no_brain_is_refused():
    with pytest.raises(InputError, match="no brain"):
        crop_around(np.zeros((2, 3, 4), bool), (8, 8))


def test_the_brain_is_where_any_volume_is_not_zero():
    first, second = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    first[0, 0, 0], second[0, 1, 1] = -3, 2
    mask = brain_mask(volume for volume in (first, second))
    assert mask.dtype == bool and mask.tolist() == [[[True, False], [False, True]]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bool])
def test_types_are_kept(dtype):
    window = CropWindow((6, 8), (-2, 9), FRAME)
    assert crop(window, np.ones(FRAME, dtype)).dtype == dtype
    assert uncrop(window, np.ones((6, 8), dtype)).dtype == dtype


# A pixel that is not a voxel.
STEPS = [(3, 3), (1.2, 1.2), (0.8, 0.8), (0.5, 0.5), (1 / 3, 0.5), (1, 0.7), (1.7, 0.6)]
each_step = pytest.mark.parametrize("step", STEPS)


def disc(shape=(61, 71), middle=(29, 37), radii=(19, 24)):
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside = ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 <= 1
    return inside[None]


def around(mask, step, margin=6):
    """A window that is larger than what it is laid around."""
    grid = [int((80 + margin) / size) for size in step]
    return crop_around(mask, grid, step)


@each_step
def test_a_pixel_lies_on_the_middle_voxel_and_the_grid_is_about_centred(step):
    mask = brain((2, 7), (3, 12))  # in the middle of which is the voxel 4, 7
    for grid in ((60, 61), (77, 80)):
        window = crop_around(mask, grid, step)
        assert (window.grid, window.frame) == (grid, FRAME) and window.step == step
        for axis, middle in enumerate((4, 7)):
            pixel = (middle - window.origin[axis]) / step[axis]
            assert pixel == pytest.approx(round(pixel), abs=1e-9)
            assert abs(pixel - (grid[axis] - 1) / 2) <= 0.5


def test_what_is_linear_along_both_axes_is_so_on_the_grid_and_back():
    frame, steps = (50, 60), (1.3, 0.7)
    y, x = np.ogrid[: frame[0], : frame[1]]
    volume = (100 + 2.0 * y - 0.75 * x + 0 * y * x)[None].astype(np.float32)
    window = CropWindow((30, 60), (5.25, 9.5), frame, steps)
    slices = crop(window, volume)[0]
    rows, columns = np.ogrid[:30, :60]
    expected = 100 + 2 * (5.25 + 1.3 * rows) - 0.75 * (9.5 + 0.7 * columns)
    inner = np.s_[8:-8, 8:-8]  # the ends bend, since beyond them it is not linear
    np.testing.assert_allclose(slices[inner], expected[inner], rtol=1e-4)
    pasted = uncrop(window, expected[None].astype(np.float32))[0]
    middle = np.s_[18:34, 18:42]
    np.testing.assert_allclose(pasted[middle], volume[0][middle], rtol=1e-4)


@each_step
def test_a_flat_brain_is_flat_to_its_very_edge_on_the_grid_and_back(step):
    mask = disc()
    window = around(mask, step)
    slices = crop(window, np.where(mask, np.float32(7), np.float32(0)))
    on_grid = crop_mask(window, mask)
    assert slices.dtype == np.float32 and on_grid.dtype == bool
    np.testing.assert_allclose(slices[on_grid], 7, rtol=1e-5)
    assert (slices[~on_grid] == 0).all() and on_grid.any() and not on_grid.all()
    pasted = uncrop(window, slices)
    assert pasted.shape == mask.shape and pasted.dtype == np.float32
    np.testing.assert_allclose(pasted[mask], 7, rtol=1e-5)


@each_step
def test_the_mask_on_the_grid_is_as_large_and_where_it_was(step):
    mask = disc()
    window = around(mask, step)
    on_grid = crop_mask(window, mask)[0]
    assert on_grid.sum() * step[0] * step[1] == pytest.approx(mask.sum(), rel=0.03)
    for axis, indices in enumerate(np.nonzero(on_grid)):
        middle = window.origin[axis] + step[axis] * indices.mean()
        assert middle == pytest.approx(np.nonzero(mask[0])[axis].mean(), abs=0.1)


@pytest.mark.parametrize("parts", [(2, 2), (3, 3), (2, 3), (1, 4)])
def test_with_whole_pixels_a_voxel_every_voxel_is_a_pixel(parts):
    mask = np.concatenate([disc(), disc(radii=(5, 6))])
    values = np.where(mask, 5 + volume(mask.shape), 0).astype(np.float32)
    step = (1 / parts[0], 1 / parts[1])
    window = around(mask, step)
    slices = crop(window, values)
    first = [round(-origin * n) % n for origin, n in zip(window.origin, parts, strict=True)]
    on_voxels = slices[:, first[0] :: parts[0], first[1] :: parts[1]]
    np.testing.assert_allclose(on_voxels[on_voxels != 0], values[values != 0], atol=2e-5)
    np.testing.assert_allclose(uncrop(window, slices)[mask], values[mask], atol=2e-5)


@cache
def phantom():
    images = make_subject(0, 0, (120, 120, 78)).images
    volumes = {name: image.transpose(2, 1, 0)[::3] for name, image in images.items()}
    return {name: image.astype(np.float32) for name, image in volumes.items()}


STATED = [(3, 0.15), (1.2, 0.051), (0.8, 0.013), (0.5, 1e-6), (1 / 3, 1e-6)]


@pytest.mark.parametrize("step, stated", STATED)
@pytest.mark.slow
def test_cropped_and_uncropped_brains_differ_by_what_is_stated_and_not_much_less(step, stated):
    mask = brain_mask(phantom().values())
    window = around(mask, (step, step), margin=50)
    worst = 0
    for values in phantom().values():
        error = (uncrop(window, crop(window, values)) - values)[mask]
        worst = max(worst, np.sqrt((error**2).mean()) / np.median(values[mask]))
    assert worst <= 1.05 * stated
    assert worst >= 0.9 * stated or stated == 1e-6


def test_a_coarser_grid_averages_the_noise_and_does_not_fold_it():
    noise = volume((1, 90, 90))
    window = CropWindow((20, 20), (15, 15), (90, 90), (3.0, 3.0))
    assert crop(window, noise).std() < 0.4
    finer = CropWindow((80, 80), (15, 15), (90, 90), (0.5, 0.5))
    assert crop(finer, noise).std() > 0.6


@each_step
def test_a_slice_is_interpolated_by_itself(step):
    mask = np.concatenate([disc(), disc(radii=(9, 5)), 0 * disc()])
    values = np.where(mask, 5 + volume(mask.shape), 0).astype(np.float32)
    window = around(mask, step)
    slices = crop(window, values)
    pasted = uncrop(window, slices)
    for z in range(3):
        assert np.array_equal(crop(window, values[z]), slices[z])
        assert np.array_equal(uncrop(window, slices[z]), pasted[z])
        assert np.array_equal(crop_mask(window, mask[z]), crop_mask(window, mask)[z])
    assert not slices[2].any() and not pasted[2].any()
    assert crop(window, values[:0]).shape == (0, *window.grid)
    stack = np.stack([slices, slices + 1])
    assert np.array_equal(uncrop(window, stack)[0], pasted)


def test_off_the_frame_and_off_the_grid_is_zero_where_pixels_are_not_voxels():
    window = CropWindow((20, 10), (-6.0, 8.0), (14, 30), (0.8, 1.5))
    slices = crop(window, np.ones((1, 14, 30), np.float32))[0]
    at_y, at_x = (-6 + 0.8 * np.arange(20), 8 + 1.5 * np.arange(10))
    inside = ((at_y > -0.5) & (at_y < 13.5))[:, None] & (at_x < 29.5)
    assert np.array_equal(slices != 0, inside)
    pasted = uncrop(window, np.ones((1, 20, 10), np.float32))[0]
    y, x = (np.arange(14) + 6) / 0.8, (np.arange(30) - 8) / 1.5
    reached = (y < 19.5)[:, None] & ((x > -0.5) & (x < 9.5))
    assert np.array_equal(pasted != 0, reached)
    np.testing.assert_allclose(pasted[reached], 1, rtol=1e-6)


def test_a_brain_too_large_for_a_grid_of_other_pixels_is_reported_in_voxels():
    mask = np.zeros((1, 300, 300), bool)
    mask[0, 50:231, 60:201] = True  # 181 x 141
    assert crop_around(mask, (151, 151), (1.2, 1.2)).origin == (50, 40)
    for step, spans in (((1.1, 1.2), "166 x 181"), ((0.5, 1.2), "76 x 181")):
        with pytest.raises(InputError) as error:
            crop_around(mask, (151, 151), step)
        words = ("181 x 141 voxels", "151 x 151", spans, "voxels")
        for word in (*words, "config.data.grid", "config.data.spacing"):
            assert word in str(error.value)


def test_a_step_that_is_one_but_for_rounding_is_a_crop():
    mask = brain((2, 6), (3, 9))
    window = crop_around(mask, (8, 10), (0.99999994, 1.0000001))
    assert window == crop_around(mask, (8, 10)) and window.step == (1.0, 1.0)
    assert all(isinstance(start, int) for start in window.origin)
    assert crop_around(mask, (80, 100), (0.99, 1.0)).step == (0.99, 1.0)


@pytest.mark.parametrize("step", [(1.0, 1.0), (0.8, 1.25)])
def test_a_window_comes_back_from_json(step):
    window = crop_around(brain((2, 6), (3, 9)), (80, 100), step)
    fields = json.loads(json.dumps(asdict(window)))
    assert CropWindow(*(tuple(fields[k]) for k in fields)) == window
    assert list(fields) == ["grid", "origin", "frame", "step"]
    old = CropWindow(*(tuple(fields[k]) for k in ("grid", "origin", "frame")))
    assert old.step == (1.0, 1.0)


@pytest.mark.parametrize("size, step, longest", [(58, 0.5, 29), (60, 0.5, 30), (7, 3, 19)])
def test_the_brain_may_reach_the_outermost_pixels_and_not_beyond(size, step, longest):
    for length in (longest - 1, longest):
        mask = np.zeros((1, 60, 60), bool)
        mask[0, 20 : 20 + length, 30] = True
        window = crop_around(mask, (size, 9), (step, 1.0))
        assert window.origin[0] <= 20
        assert window.origin[0] + step * (size - 1) >= 20 + length - 1
    mask[0, 20 + longest, 30] = True
    with pytest.raises(InputError, match=rf"{longest + 1} x 1 voxels"):
        crop_around(mask, (size, 9), (step, 1.0))
