"""Cutting and pasting are each other's exact inverse, wherever the grid lies."""

import numpy as np
import pytest

from ummcsgm.data.window import Window, brain_mask, cut, paste, window_around
from ummcsgm.types import InputError

FRAME = (11, 14)  # Y, X


def brain(y, x, depth=3):
    mask = np.zeros((depth, *FRAME), bool)
    mask[1, y[0] : y[1], (x[0] + x[1]) // 2] = True
    mask[2, (y[0] + y[1]) // 2, x[0] : x[1]] = True
    return mask


def volume(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("y", [(0, 4), (3, 9), (8, 11), (0, 11), (10, 11)])
@pytest.mark.parametrize("x", [(0, 5), (4, 11), (13, 14), (0, 14)])
@pytest.mark.parametrize("grid", [(11, 14), (16, 16), (12, 20), (40, 40)])
def test_what_is_cut_and_pasted_is_the_brain_bitwise(y, x, grid):
    mask = brain(y, x)
    values = volume(mask.shape)
    window = window_around(mask, grid)
    slices = cut(window, values)
    again = paste(window, slices)
    assert slices.shape == (3, *grid) and again.shape == values.shape
    assert np.array_equal(again[mask], values[mask])
    assert cut(window, mask).sum() == mask.sum()


@pytest.mark.parametrize("origin", [(-3, -2), (0, 0), (5, 9), (-1, 6), (4, 3)])
def test_what_is_pasted_and_cut_is_itself_within_the_frame(origin):
    window = Window((6, 8), origin, FRAME)
    slices = volume((2, 3, 6, 8))
    again = cut(window, paste(window, slices))
    for y in range(6):
        for x in range(8):
            inside = 0 <= origin[0] + y < FRAME[0] and 0 <= origin[1] + x < FRAME[1]
            expected = slices[..., y, x] if inside else 0 * slices[..., y, x]
            assert np.array_equal(again[..., y, x], expected)


def test_a_voxel_lands_where_the_origin_says_and_padding_is_zero():
    window = Window((6, 8), (-2, 9), FRAME)
    ones = np.ones((1, *FRAME), np.float32)
    ones[0, 1, 10] = 5
    slices = cut(window, ones)[0]
    assert slices[3, 1] == 5
    assert (slices[:2] == 0).all() and (slices[:, 5:] == 0).all()
    assert (slices[2:, :5] != 0).all()
    pasted = paste(window, slices[None])[0]
    assert pasted[1, 10] == 5 and np.count_nonzero(pasted) == 4 * 5


def test_the_window_is_centred_on_the_brain():
    window = window_around(brain((2, 6), (3, 9)), (8, 10))
    assert window == Window((8, 10), (0, 1), FRAME)
    assert window_around(brain((2, 6), (3, 9)), (10, 20)).origin == (-1, -4)


def test_a_brain_that_is_larger_than_the_grid_is_refused_with_both_sizes():
    mask = brain((1, 10), (2, 7))
    assert window_around(mask, (9, 5)).origin == (1, 2)
    for grid in ((8, 5), (9, 4)):
        with pytest.raises(InputError) as error:
            window_around(mask, grid)
        for word in ("9 x 5", f"{grid[0]} x {grid[1]}", "config.data.grid"):
            assert word in str(error.value)


def test_no_brain_is_refused():
    with pytest.raises(InputError, match="no brain"):
        window_around(np.zeros((2, 3, 4), bool), (8, 8))


def test_the_brain_is_where_any_volume_is_not_zero():
    one, other = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    one[0, 0, 0], other[0, 1, 1] = -3, 2
    mask = brain_mask(volume for volume in (one, other))
    assert mask.dtype == bool and mask.tolist() == [[[True, False], [False, True]]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bool])
def test_types_are_kept(dtype):
    window = Window((6, 8), (-2, 9), FRAME)
    assert cut(window, np.ones(FRAME, dtype)).dtype == dtype
    assert paste(window, np.ones((6, 8), dtype)).dtype == dtype
