"""NIfTI in and out: every orientation, every kind of damage, nothing lost."""

import gzip
import os
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ummcsgm.data import nifti
from ummcsgm.data.nifti import (
    is_synthetic,
    read_volume,
    read_volumes,
    spacing,
    spacing_in_plane,
    write_like,
    write_new,
)
from ummcsgm.types import InputError

OPEN_MS = Path(__file__).parents[2] / "../shared/data/open_ms"
VOXELS = np.array([0.9, 1.1, 2.5])
ORIENTATIONS = list(product(permutations(range(3)), product([1, -1], repeat=3)))


def oriented(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[axes[axis], axis] = signs[axis] * VOXELS[axis]
    affine[:3, 3] = [-31.5, 17.25, 8.0]
    return affine


def oblique():
    a, b = 0.3, -0.2
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    affine = oriented((1, 2, 0), (-1, 1, -1))
    affine[:3, :3] = np.array(about_x) @ np.array(about_z) @ affine[:3, :3]
    return affine


def noise(shape=(4, 5, 6), dtype=np.float32):
    return np.random.default_rng(0).normal(100, 30, shape).astype(dtype)


def stored(path):
    image = nib.load(path)
    return image, image.dataobj.get_unscaled()


def test_a_marker_is_where_its_world_coordinates_say_in_all_48(tmp_path):
    for axes, signs in ORIENTATIONS:
        check_marker(tmp_path, axes, signs)


def check_marker(tmp_path, axes, signs):
    affine, data, at = oriented(axes, signs), noise(), (3, 1, 2)
    data[at] = 1000
    write_new(tmp_path / "a.nii", data, affine)
    volume, _ = read_volume(tmp_path / "a.nii")
    corners = np.array(list(product(*[(0, size - 1) for size in data.shape])))
    lowest = nib.affines.apply_affine(affine, corners).min(axis=0)
    spacing = VOXELS[np.argsort(axes)]
    x, y, z = (nib.affines.apply_affine(affine, at) - lowest) / spacing
    assert volume.dtype == np.float32 and volume.size == data.size
    assert volume[round(z), round(y), round(x)] == 1000
    assert np.argwhere(volume == 1000).tolist() == [[round(z), round(y), round(x)]]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1", "u2", "i4", ">i2", ">f4"])
def test_an_oblique_file_of_any_type_comes_back_with_its_header(tmp_path, dtype):
    image = nib.Nifti1Image(noise().astype(dtype).astype(np.float32), oblique())
    image.header.set_data_dtype(dtype)
    image = nib.Nifti1Image(image.get_fdata().astype(dtype), oblique(), image.header)
    image.set_qform(oblique(), code=3)
    image.set_sform(None, code=0)
    image.header["cal_max"], image.header["aux_file"] = 55, b"kept"
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    write_like(tmp_path / "b.nii.gz", *read_volume(tmp_path / "a.nii.gz"))
    before, data = stored(tmp_path / "a.nii.gz")
    after, again = stored(tmp_path / "b.nii.gz")
    assert data.tobytes() == again.tobytes() and data.dtype == again.dtype
    assert after.header["descrip"] == b"synthetic, ummcsgm"
    assert after.header["cal_max"] == 0 and before.header["cal_max"] == 55
    changed = {"descrip", "cal_max", "cal_min"}
    for field in set(before.header.keys()) - changed:
        assert before.header[field].tobytes() == after.header[field].tobytes(), field


def test_trailing_axes_of_one_are_squeezed_and_put_back(tmp_path):
    write_new(tmp_path / "a.nii", noise((4, 5, 6, 1)), oblique())
    volume, geometry = read_volume(tmp_path / "a.nii")
    assert volume.ndim == 3
    write_like(tmp_path / "b.nii", volume, geometry)
    assert stored(tmp_path / "b.nii")[1].shape == (4, 5, 6, 1)


def test_a_second_version_file_stays_one(tmp_path):
    nib.save(nib.Nifti2Image(noise(), oblique()), tmp_path / "a.nii")
    write_like(tmp_path / "b.nii", *read_volume(tmp_path / "a.nii"))
    assert isinstance(nib.load(tmp_path / "b.nii"), nib.Nifti2Image)
    assert np.array_equal(stored(tmp_path / "b.nii")[1], noise())


def scaled_file(path, dtype, slope, inter):
    levels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    image = nib.Nifti1Image(levels, oblique())
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return levels


@pytest.mark.parametrize("dtype", ["i2", "u1", "u2", "i4"])
@pytest.mark.parametrize("slope, inter", [(0.37, 0.0), (2.5, -5.0), (0.1, 300.0)])
def test_a_scaled_file_is_read_in_its_units_and_written_as_it_was(tmp_path, dtype, slope, inter):
    levels = scaled_file(tmp_path / "a.nii", dtype, slope, inter)
    volume, geometry = read_volume(tmp_path / "a.nii")
    expected = np.sort((levels * slope + inter).ravel())
    np.testing.assert_allclose(np.sort(volume.ravel()), expected, rtol=1e-5)
    write_like(tmp_path / "b.nii", volume, geometry)
    image, again = stored(tmp_path / "b.nii")
    assert np.array_equal(levels, again)
    assert image.dataobj.slope == np.float32(slope)
    assert image.dataobj.inter == np.float32(inter)


@pytest.mark.parametrize("dtype, levels", [("i2", 2**14), ("u1", 2**7), ("u2", 2**15)])
@pytest.mark.parametrize("low, high", [(0, 0.9), (-300, 1600), (0, 5e6)])
def test_new_values_in_a_scaled_file_keep_their_size_and_their_zeros(
    tmp_path, dtype, levels, low, high
):
    scaled_file(tmp_path / "a.nii", dtype, 0.37, 1.0)
    volume, geometry = read_volume(tmp_path / "a.nii")
    wished = np.random.default_rng(1).uniform(low, high, volume.shape)
    wished = wished.astype(np.float32)
    wished.flat[::5] = 0
    wished.flat[1:3] = low, high
    write_like(tmp_path / "b.nii", wished, geometry)
    again, _ = read_volume(tmp_path / "b.nii")
    assert np.abs(again - wished).max() <= (high - low) / levels
    assert (again[wished == 0] == 0).all()
    seen_by_others = nib.load(tmp_path / "b.nii").get_fdata()
    assert (seen_by_others == 0).sum() >= (wished == 0).sum()
    assert nib.load(tmp_path / "b.nii").get_data_dtype() == np.dtype(dtype)


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("slope, inter", [(None, None), (0.37, 0.0), (0.5, -3.0)])
def test_the_position_and_the_units_of_a_file_are_the_references(
    tmp_path, version, dtype, slope, inter
):
    image = version(noise().astype(dtype), oblique())
    image.set_sform(oblique() + np.diag([0, 0, 0.125, 0]), code=4)
    image.set_qform(oblique(), code=2)
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "a.nii.gz")
    volume, geometry = read_volume(tmp_path / "a.nii.gz")
    for name, values in (("same", volume), ("other", 1.37 * volume[::-1] - 20)):
        write_like(tmp_path / name, values, geometry)
        (tmp_path / name).rename(tmp_path / f"{name}.nii")
        (before, data), (after, again) = (
            stored(tmp_path / "a.nii.gz"),
            stored(tmp_path / f"{name}.nii"),
        )
        assert type(after) is version and again.dtype == np.dtype(dtype)
        for form in ("get_sform", "get_qform"):
            (one, code), (other, same) = (getattr(it, form)(coded=True) for it in (before, after))
            assert one.tobytes() == other.tobytes() and int(code) == int(same) > 0
        assert after.header.get_xyzt_units() == ("mm", "msec")
        for field in ("pixdim", "dim", "srow_z", "quatern_b", "qoffset_x", "datatype"):
            assert before.header[field].tobytes() == after.header[field].tobytes()
        span = np.abs(values).max()
        back, _ = read_volume(tmp_path / f"{name}.nii")
        assert np.abs(back - values).max() <= span / (100 if dtype == "u1" else 1000)
        if name == "same":
            assert np.array_equal(back, volume)
            assert dtype[0] == "f" or np.array_equal(data, again)


SCALINGS = [(1.0, 0.0), (0.37, 0.0), (0.37, 1.0), (2.0, -1024.0), (1e-6, 0.0)]


@pytest.mark.parametrize("dtype, levels", [("i2", 2**15), ("u1", 2**8), ("u2", 2**16)])
@pytest.mark.parametrize("slope, inter", SCALINGS)
@pytest.mark.parametrize(
    "low, high", [(0, 1), (0, 254.9), (0, 1e6), (-7, 3e4), (-3e-4, 2e-4), (0, 3e38)]
)
def test_no_value_is_clipped_or_lost_and_zero_is_zero_in_any_integer_type(
    tmp_path, dtype, levels, slope, inter, low, high
):
    scaled_file(tmp_path / "a.nii", dtype, slope, inter)
    volume, geometry = read_volume(tmp_path / "a.nii")
    wished = np.random.default_rng(1).uniform(low, high, volume.shape)
    wished = wished.astype(np.float32)
    wished.flat[::5] = 0
    wished.flat[1:3] = low, high
    write_like(tmp_path / "b.nii", wished, geometry)
    back, _ = read_volume(tmp_path / "b.nii")
    largest, span = max(high, -low), high - low
    error = np.abs(back.astype(np.float64) - wished).max()
    # A slope that is a power of two: half a level, of at most twice the least size.
    finest = 1.01 * max(span, 2 * largest * (dtype == "i2")) / levels
    assert error <= max(largest / 1000, finest)
    assert (back[wished == 0] == 0).all()
    seen_by_others = nib.load(tmp_path / "b.nii").get_fdata()
    assert (seen_by_others == 0).sum() >= (wished == 0).sum()
    assert nib.load(tmp_path / "b.nii").get_data_dtype() == np.dtype(dtype)


def test_a_scaling_that_holds_the_values_is_kept_and_another_is_not(tmp_path):
    scaled_file(tmp_path / "a.nii", "i2", 1.0, 0.0)
    volume, geometry = read_volume(tmp_path / "a.nii")
    values = np.linspace(0, 254.9, volume.size, dtype=np.float32).reshape(volume.shape)
    scaled_file(tmp_path / "u.nii", "u1", 1.0, 0.0)
    write_like(tmp_path / "b.nii", values, read_volume(tmp_path / "u.nii")[1])
    assert np.array_equal(read_volume(tmp_path / "b.nii")[0], np.rint(values))
    cases = ((4000.4, (1.0, 0.0)), (32767.4, (1.0, 0.0)), (32768, (2.0, 0.0)))
    for high, expected in (*cases, (40.4, (2.0**-9, 0.0)), (-32768, (1.0, 0.0))):
        wished = np.linspace(0, high, volume.size, dtype=np.float32)
        write_like(tmp_path / "b.nii", wished.reshape(volume.shape), geometry)
        image, _ = stored(tmp_path / "b.nii")
        assert (image.dataobj.slope, image.dataobj.inter) == expected, high


def four(path, version=nib.Nifti1Image, dtype="i2", slope=None, trailing=()):
    levels = np.random.default_rng(5).integers(1, 100, (4, 5, 6, 3, *trailing))
    image = version(levels.astype(dtype), oblique())
    image.header.set_slope_inter(slope, None if slope is None else 2.0)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 7.5
    nib.save(image, path)
    return levels.reshape(4, 5, 6, 3)


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype, slope", [("i2", None), ("i2", 0.37), ("f4", None)])
@pytest.mark.parametrize("trailing", [(), (1,)])
def test_a_volume_of_a_4d_file_is_read_by_number_and_written_as_a_3d_file(
    tmp_path, version, dtype, slope, trailing
):
    levels = four(tmp_path / "4.nii.gz", version, dtype, slope, trailing)
    for index in range(3):
        image = version(levels[..., index].astype(dtype), oblique())
        image.header.set_slope_inter(slope, None if slope is None else 2.0)
        nib.save(image, tmp_path / "3.nii")
        expected, _ = read_volume(tmp_path / "3.nii")
        volume, geometry = read_volume(tmp_path / "4.nii.gz", index)
        assert np.array_equal(volume, expected) and geometry.shape == (4, 5, 6)
        assert geometry.header.get_data_shape() == (4, 5, 6)
        write_like(tmp_path / "b.nii", volume, geometry)
        written, again = stored(tmp_path / "b.nii")
        assert written.header["dim"].tolist() == [3, 4, 5, 6, 1, 1, 1, 1]
        assert written.header["pixdim"][4:].tolist() == [1, 1, 1, 1]
        assert written.header["pixdim"][1:4].tolist() == pytest.approx(VOXELS)
        assert np.array_equal(again, levels[..., index]) and written.shape == (4, 5, 6)
        assert written.header.get_xyzt_units()[0] == "mm"


def test_a_volume_that_a_file_does_not_have_is_refused(tmp_path):
    four(tmp_path / "4.nii")
    write_new(tmp_path / "3.nii", noise(), oblique())
    write_new(tmp_path / "5.nii", noise((2, 3, 4, 2, 3)), oblique())
    refused(tmp_path / "4.nii", "3 volumes", "(4, 5, 6, 3)", "4-D", "layout")
    for name, index, word in (("4", 3, "volume 3"), ("4", -1, "volume -1")):
        with pytest.raises(InputError, match=rf"{name}\.nii.*3 volumes.*{word}"):
            read_volume(tmp_path / f"{name}.nii", index)
    for name in ("3", "5"):
        with pytest.raises(InputError, match=rf"{name}\.nii.*wanted a 4-D.*volume 0"):
            read_volume(tmp_path / f"{name}.nii", 0)


def test_a_4d_file_that_serves_several_modalities_is_read_once(tmp_path, monkeypatch):
    path, other = tmp_path / "4.nii.gz", tmp_path / "t2.nii"
    levels, reads = four(path, dtype="f4"), []
    write_new(other, noise(), oblique())
    read_file = nifti._read_file

    def read_and_note(path):
        reads.append(path)
        return read_file(path)

    monkeypatch.setattr(nifti, "_read_file", read_and_note)
    files = {"t1": path, "t2": other, "flair": path}
    volumes, geometry = read_volumes(files, {"t1": 2, "flair": 0})
    assert reads == [path, other]
    assert list(volumes) == ["t1", "t2", "flair"] and geometry.path == path
    assert geometry.shape == (4, 5, 6)
    for modality, index in (("t1", 2), ("flair", 0)):
        assert np.array_equal(volumes[modality], read_volume(path, index)[0])
        assert set(volumes[modality].ravel()) == set(levels[..., index].ravel())


@pytest.mark.parametrize("axes, signs", ORIENTATIONS)
def test_the_spacing_is_that_of_z_y_and_x_in_all_48(tmp_path, axes, signs):
    tilt = oblique()[:3, :3] @ np.linalg.inv(oriented((1, 2, 0), (-1, 1, -1))[:3, :3])
    for turn in (np.eye(3), tilt):
        affine = oriented(axes, signs)
        by_axis = [VOXELS[axes.index(axis)] for axis in range(3)]
        affine[:3, :3] = turn @ affine[:3, :3]
        write_new(tmp_path / "a.nii", noise(), affine)
        _, geometry = read_volume(tmp_path / "a.nii")
        assert spacing(geometry) == pytest.approx(by_axis[::-1], rel=1e-6)
        assert spacing_in_plane(geometry) == spacing(geometry)[1:]


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_only_what_is_written_like_a_file_says_that_it_is_synthetic(tmp_path, version):
    nib.save(version(noise(), oblique()), tmp_path / "a.nii.gz")
    for name in ("b.nii", "b.nii.gz"):
        write_like(tmp_path / name, *read_volume(tmp_path / "a.nii.gz"))
        assert is_synthetic(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        assert is_synthetic(tmp_path / name), "the volume has no part in it"
    (tmp_path / "c.nii").write_bytes(b"n+1")
    for name in ("a.nii.gz", "absent.nii", "c.nii", "."):
        assert not is_synthetic(tmp_path / name)


def test_a_new_file_has_the_affine_the_units_and_the_same_bytes_again(tmp_path):
    for name in ("a.nii.gz", "elsewhere.nii.gz"):
        write_new(tmp_path / name, noise(dtype=np.int16), oblique())
    image, data = stored(tmp_path / "a.nii.gz")
    assert np.array_equal(data, noise(dtype=np.int16)) and data.dtype == np.int16
    np.testing.assert_allclose(image.get_sform(), oblique(), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), oblique(), atol=1e-5)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "elsewhere.nii.gz").read_bytes()
    assert content[3:8] == bytes(5)  # gzip: no name and no time


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    before = (tmp_path / "a.nii").read_bytes()

    def fail(beside, path):
        assert Path(beside).exists()
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        write_new(tmp_path / "a.nii", noise() + 1, np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == before


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_volume(path)
    for word in (path.name, *words):
        assert word in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "no.nii.gz", "no such file")


def test_a_gzip_file_cut_anywhere_or_with_one_bit_changed_is_damaged(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_new(path, noise(), np.eye(4))
    whole = path.read_bytes()
    for length in (5, 30, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        refused(path, "damaged")
    for index in (len(whole) // 2, len(whole) - 6):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        refused(path, "damaged")


def test_a_plain_file_cut_short_tells_both_lengths(tmp_path):
    path = tmp_path / "a.nii"
    write_new(path, noise(), np.eye(4))
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "831", "832")


def test_a_claim_of_too_many_voxels_is_reported_and_the_file_not_read(tmp_path):
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    whole[42:48] = np.array([10**4] * 3, "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(whole)
    refused(tmp_path / "a.nii", "1000000000000 voxels", "(10000, 10000, 10000)")


def test_what_is_not_nifti_is_refused(tmp_path):
    for name, content in (("a.nii", b"hello"), ("b.nii.gz", gzip.compress(b"x" * 900))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a NIfTI")
    (tmp_path / "empty.nii").write_bytes(b"")
    refused(tmp_path / "empty.nii", "not a NIfTI")


@pytest.mark.slow
def test_a_header_with_any_byte_wrong_is_read_or_refused_and_never_breaks(tmp_path):
    path = tmp_path / "a.nii"
    write_new(path, noise(), np.eye(4))
    whole = bytearray(path.read_bytes())
    for offset in range(352):
        for value in (0x00, 0x80, 0xFF):
            broken = whole.copy()
            broken[offset] = value
            path.write_bytes(broken)
            try:
                volume, _ = read_volume(path)
            except InputError as error:
                assert "a.nii" in str(error)
            else:
                assert np.isfinite(volume).all()


def with_five_broken(data):
    data[0, 0, :3], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
    return data


@pytest.mark.parametrize(
    "data, word",
    [
        (noise((6, 6)), "(6, 6)"),
        (noise((3, 4, 5, 2)), "(3, 4, 5, 2)"),
        (noise().astype(np.complex64), "complex64"),
        (with_five_broken(noise()), "5 of 120"),
        (np.zeros((3, 3, 3), np.float32), "empty"),
        (np.full((3, 3, 3), 7.5, np.float32), "7.5 everywhere"),
    ],
)
def test_what_is_no_finite_3d_image_is_refused_with_what_was_seen(tmp_path, data, word):
    write_new(tmp_path / "a.nii", data, np.eye(4))
    refused(tmp_path / "a.nii", word)


def test_a_file_without_a_position_in_space_is_refused(tmp_path):
    image = nib.Nifti1Image(noise(), np.eye(4))
    for field in ("srow_x", "srow_y", "srow_z"):
        image.header[field] = 0
    image.header["sform_code"] = 1
    content = bytearray(image.to_bytes())
    content[280:328] = bytes(48)
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "affine")


def test_a_case_has_its_volumes_by_name_and_the_first_geometry(tmp_path):
    files = {name: tmp_path / f"{name}.nii" for name in ("t2", "t1")}
    for number, path in enumerate(files.values()):
        write_new(path, noise() + number, oblique())
    volumes, geometry = read_volumes(files, {})
    assert list(volumes) == ["t2", "t1"] and geometry.path == files["t2"]
    assert np.array_equal(volumes["t1"], read_volume(files["t1"])[0])
    assert not np.array_equal(volumes["t1"], volumes["t2"])


def test_two_shapes_in_a_case_are_refused_by_both_names(tmp_path):
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    write_new(tmp_path / "b.nii", noise((4, 5, 7)), np.eye(4))
    with pytest.raises(InputError, match=r"a\.nii is \(4, 5, 6\).*b\.nii is \(4, 5, 7"):
        read_volumes({"t1": tmp_path / "a.nii", "t2": tmp_path / "b.nii"}, {})


@pytest.mark.parametrize("shift, fits", [(1e-4, True), (2e-3, False)])
def test_affines_in_a_case_may_differ_by_less_than_a_part_of_a_voxel(tmp_path, shift, fits):
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    moved[1, 3] = shift
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    write_new(tmp_path / "b.nii", noise(), moved)
    files = {"t1": tmp_path / "a.nii", "t2": tmp_path / "b.nii"}
    if fits:
        assert set(read_volumes(files, {})[0]) == {"t1", "t2"}
    else:
        with pytest.raises(InputError, match=r"a\.nii.*b\.nii.*0\.002"):
            read_volumes(files, {})


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="shared/data/open_ms is absent")
def test_real_open_ms_comes_back_bitwise_skipped_where_shared_data_is_absent(tmp_path):
    path = OPEN_MS / "patient19/patient19-t1n.nii.gz"
    volume, geometry = read_volume(path)
    image, data = stored(path)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert volume.shape == (182, 218, 182) and volume.min() < 0
    assert np.array_equal(volume, data[::-1].transpose(2, 1, 0))
    write_like(tmp_path / "b.nii", volume, geometry)
    after, again = stored(tmp_path / "b.nii")
    assert data.tobytes("F") == again.tobytes("F")
    assert np.array_equal(image.affine, after.affine)
    assert (after.header["qform_code"], after.header["sform_code"]) == (1, 0)
