"""From a file to the network's grid and back into a file, in all 48 orientations.

Where a pixel is a voxel the file that comes out holds what the one that went in held,
bit for bit; where it is not, it differs by the error that `uncrop` states.
"""

from functools import cache
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from ummcsgm.data.crop import brain_mask, crop, crop_around, crop_mask, uncrop
from ummcsgm.data.intensity import denormalise, fit_scale, normalise
from ummcsgm.data.nifti import read_volume, read_volumes, spacing_in_plane, write_like, write_new
from ummcsgm.data.phantom.make import make_subject

VOXELS = np.array([0.9, 1.1, 2.5])  # mm, along the axes as they are stored
TURNS = {"straight": (0, 0, 0), "oblique": (0.2, -0.15, 0.1)}  # rad about x, y, z
ORIENTATIONS = list(product(permutations(range(3)), product([1, -1], repeat=3)))
each_turn = pytest.mark.parametrize("turn", TURNS)


def placed(axes, signs, turn):
    """An affine whose stored axis i runs along or against the RAS axis axes[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, stored] = sign * VOXELS[stored]
    affine[:3, 3] = [-31.5, 17.25, 8.0]
    for axis, angle in enumerate(TURNS[turn]):
        rotation, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
        rotation[[i, j], [i, j]] = np.cos(angle)
        rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
        affine = rotation @ affine
    return affine


def stored_as(volume, axes, signs):
    """`volume` [Z, Y, X] RAS as the array of a file with these axes."""
    across = volume.transpose(2, 1, 0)[
        tuple(slice(None, None, signs[axes.index(axis)]) for axis in range(3))
    ]
    return np.ascontiguousarray(across.transpose(axes))


def ball(shape):
    """True in an ellipsoid off the middle of `shape`, with no symmetry about it."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    middle = (0.5 * shape[0], 0.45 * shape[1], 0.55 * shape[2])
    radii = (0.5 * shape[0], 0.35 * shape[1], 0.3 * shape[2])
    parts = zip((z, y, x), middle, radii, strict=True)
    return sum(((at - m) / r) ** 2 for at, m, r in parts) <= 1


def levels(dtype, shape=(6, 20, 23)):
    """Values up to the limits of `dtype`, or 2^21, 0 off the brain, [Z, Y, X]."""
    chance = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return np.where(ball(shape), chance.normal(300, 90, shape), 0).astype(dtype)
    high = min(np.iinfo(dtype).max, 2**21)  # a float32 holds 1/4 there
    low = max(np.iinfo(dtype).min, -high) // 4
    values = chance.integers(low, high, shape, endpoint=True)
    values[3, 9, 10:12] = low, high
    return np.where(ball(shape), values, 0).astype(dtype)


def there_and_back(path, grid, step=None, scale=None):
    """What the network's world makes of the file at `path`, and its geometry.

    This is the way of a completed modality, but for the network.
    """
    volumes, geometry = read_volumes({"t1": path}, {})
    brain = brain_mask(volumes.values())
    volume = volumes["t1"]
    scale = fit_scale(volume) if scale is None else scale
    window = crop_around(brain, grid, (1.0, 1.0) if step is None else step)
    slices = crop(window, normalise(volume, scale))
    slices = np.where(crop_mask(window, brain), slices, 0)
    pasted = denormalise(uncrop(window, slices), scale)
    return np.where(brain, pasted, 0), geometry, (window, slices * scale)


def content(path):
    image = nib.load(path)
    return image, image.dataobj.get_unscaled()


def same_files(source, copy):
    """Both files hold the same bytes of voxels, in the same place."""
    (before, data), (after, again) = content(source), content(copy)
    assert data.dtype == again.dtype and data.tobytes("F") == again.tobytes("F")
    assert before.affine.tobytes() == after.affine.tobytes()
    assert before.dataobj.slope == after.dataobj.slope
    assert before.dataobj.inter == after.dataobj.inter


@each_turn
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_a_file_in_any_orientation_is_bitwise_itself(tmp_path, turn, dtype):
    """int16 by any scale, float32 by a power of two."""
    source, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    values, scales = levels(dtype), {"i2": (512.0, None), "f4": (256.0,)}[dtype]
    for axes, signs in ORIENTATIONS:
        write_new(source, stored_as(values, axes, signs), placed(axes, signs, turn))
        assert np.array_equal(read_volume(source)[0], values)
        for grid, scale in product(((18, 17), (40, 51)), scales):  # less, more than the frame
            volume, geometry, _ = there_and_back(source, grid, scale=scale)
            write_like(copy, volume, geometry)
            same_files(source, copy)


@pytest.mark.parametrize("scale", [None, 3.7, 611.3, 1e-4])
def test_a_float_file_by_any_scale_is_itself_but_for_the_last_bit(tmp_path, scale):
    source, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    write_new(source, levels("f4").T, placed((0, 1, 2), (1, 1, 1), "oblique"))
    volume, geometry, _ = there_and_back(source, (18, 17), scale=scale)
    write_like(copy, volume, geometry)
    before, after = content(source)[1], content(copy)[1]
    assert np.array_equal(before == 0, after == 0)
    assert (np.abs(after - before) <= np.spacing(np.abs(before))).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", ">i2"])
@pytest.mark.parametrize("scaling", [(None, None), (0.37, 0.0), (0.25, 5.0)])
def test_an_integer_file_of_any_type_and_scaling_is_bitwise_itself(tmp_path, dtype, scaling):
    source, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    background = -20 if scaling[1] and np.dtype(dtype).kind == "i" else 0
    data = np.where(ball(levels(dtype).shape), levels(dtype), background).T
    affine = placed((2, 0, 1), (1, -1, 1), "oblique")
    header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] == ">" else "<")
    image = nib.Nifti1Image(data.astype(dtype), affine, header, dtype=dtype)
    image.header.set_slope_inter(*scaling)
    nib.save(image, source)
    volume, geometry, _ = there_and_back(source, (60, 60))
    write_like(copy, volume, geometry)
    before, after = content(source)[1], content(copy)[1]
    assert np.array_equal(before, after) and before.dtype == after.dtype


def waves(x, y, z):
    """A smooth image of world coordinates in mm, with nothing the same twice."""
    return 300 + 60 * np.sin(x / 5 + 0.3) + 50 * np.cos(y / 4 - z / 9) + 2 * x - y + z


@each_turn
def test_a_pixel_shows_what_is_at_its_world_coordinates(tmp_path, turn):
    for axes, signs in ORIENTATIONS:
        check_world_coordinates(tmp_path, axes, signs, turn)


def check_world_coordinates(tmp_path, axes, signs, turn):
    path, affine = tmp_path / "a.nii", placed(axes, signs, turn)
    brain = ball((5, 40, 46))
    inside = stored_as(brain, axes, signs)
    at = nib.affines.apply_affine(affine, np.moveaxis(np.indices(inside.shape), 0, -1))
    data = np.where(inside, waves(*np.moveaxis(at, -1, 0)), 0).astype(np.float32)
    write_new(path, data, affine)
    volume, geometry = read_volume(path)
    assert np.array_equal(volume != 0, brain)
    dy, dx = spacing_in_plane(geometry)
    assert dy == pytest.approx(VOXELS[axes.index(1)], rel=1e-6)
    step = (0.8 / dy, 0.7 / dx)  # pixels of 0.8 x 0.7 mm
    volume, _, (window, slices) = there_and_back(path, (110, 110), step)
    to_world = nib.as_closest_canonical(nib.load(path)).affine
    z, rows, columns = np.nonzero(slices)
    y = window.origin[0] + window.step[0] * rows
    x = window.origin[1] + window.step[1] * columns
    expected = waves(*nib.affines.apply_affine(to_world, np.stack([x, y, z], -1)).T)
    error = np.abs(slices[z, rows, columns] - expected)
    assert np.sqrt((error**2).mean()) < 0.02 * 300 and np.median(error) < 0.004 * 300
    area = np.prod(window.step) * len(z)
    assert area == pytest.approx(np.count_nonzero(brain), rel=0.05)


@cache
def head():
    """Some slices of a phantom, [Z, Y, X] int16."""
    return make_subject(0, 0, (120, 120, 78)).images["t1"].transpose(2, 1, 0)[15:60:9]


STATED = [((1.2, 1.2), 0.051), ((0.8, 0.5), 0.013)]


@each_turn
@pytest.mark.parametrize("step, stated", STATED)
@pytest.mark.slow
def test_a_resampled_file_differs_by_no_more_than_is_stated(tmp_path, turn, step, stated):
    for axes, signs in ORIENTATIONS:
        check_stated_error(tmp_path, axes, signs, turn, step, stated)


def check_stated_error(tmp_path, axes, signs, turn, step, stated):
    source, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    write_new(source, stored_as(head(), axes, signs), placed(axes, signs, turn))
    grid = [int(110 / size) for size in step]
    volume, geometry, _ = there_and_back(source, grid, step)
    write_like(copy, volume, geometry)
    (before, data), (after, again) = content(source), content(copy)
    assert before.affine.tobytes() == after.affine.tobytes()
    assert not again[data == 0].any()
    error = (again * float(after.dataobj.slope) - data)[data != 0]
    assert np.sqrt((error**2).mean()) <= stated * np.median(data[data != 0])


@pytest.mark.parametrize("parts", [(2, 2), (3, 2), (1, 4)])
def test_with_whole_pixels_a_voxel_an_int16_file_is_bitwise_itself(tmp_path, parts):
    source, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    write_new(source, head().T, placed((0, 1, 2), (1, 1, 1), "oblique"))
    grid = [115 * part for part in parts]
    step = (1 / parts[0], 1 / parts[1])
    write_like(copy, *there_and_back(source, grid, step)[:2])
    same_files(source, copy)
