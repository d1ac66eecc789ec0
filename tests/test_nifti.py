"""NIfTI in and out: every orientation, every kind of damage, nothing lost."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ummcsgm.data.nifti import read_case, read_volume, write_like, write_new
from ummcsgm.types import InputError

OPEN_MS = Path(__file__).parents[1] / "../shared/data/open_ms"
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


@pytest.mark.parametrize("axes, signs", ORIENTATIONS)
def test_a_marker_is_where_its_world_coordinates_say_in_all_48(tmp_path, axes, signs):
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


@pytest.mark.parametrize("axes, signs", ORIENTATIONS)
def test_reading_and_writing_is_the_identity_on_disk_in_all_48(tmp_path, axes, signs):
    write_new(tmp_path / "a.nii", noise(), oriented(axes, signs))
    write_like(tmp_path / "b.nii", *read_volume(tmp_path / "a.nii"))
    (before, data), (after, again) = (
        stored(tmp_path / "a.nii"),
        stored(tmp_path / "b.nii"),
    )
    assert data.tobytes("F") == again.tobytes("F")
    assert before.affine.tobytes() == after.affine.tobytes()


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


def test_values_for_an_integer_file_are_rounded_and_clipped(tmp_path):
    write_new(tmp_path / "a.nii", noise((1, 1, 6), np.uint8), np.eye(4))
    _, geometry = read_volume(tmp_path / "a.nii")
    wished = np.array([0, 0.6, 1.4, -7, 254.9, 1e6], np.float32).reshape(6, 1, 1)
    write_like(tmp_path / "b.nii", wished, geometry)
    assert stored(tmp_path / "b.nii")[1].ravel().tolist() == [0, 1, 1, 0, 255, 255]
    assert nib.load(tmp_path / "b.nii").get_fdata().ravel()[1] == 1


def scaled_file(path, dtype, slope, inter):
    levels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    image = nib.Nifti1Image(levels, oblique())
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return levels


@pytest.mark.parametrize("dtype", ["i2", "u1", "u2", "i4"])
@pytest.mark.parametrize("slope, inter", [(0.37, 0.0), (2.5, -5.0), (0.1, 300.0)])
def test_a_scaled_file_is_read_in_its_units_and_written_as_it_was(
    tmp_path, dtype, slope, inter
):
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

    def fail(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", fail)
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
    for place in (len(whole) // 2, len(whole) - 6):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(path, "damaged")


def test_a_plain_file_cut_short_tells_both_lengths(tmp_path):
    path = tmp_path / "a.nii"
    write_new(path, noise(), np.eye(4))
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "831", "832")


def test_what_is_not_nifti_is_refused(tmp_path):
    for name, content in (("a.nii", b"hello"), ("b.nii.gz", gzip.compress(b"x" * 900))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a NIfTI")
    (tmp_path / "empty.nii").write_bytes(b"")
    refused(tmp_path / "empty.nii", "not a NIfTI")


def test_a_header_with_any_byte_wrong_is_read_or_refused_and_never_breaks(tmp_path):
    path = tmp_path / "a.nii"
    write_new(path, noise(), np.eye(4))
    whole = bytearray(path.read_bytes())
    for place in range(352):
        for value in (0x00, 0x80, 0xFF):
            broken = whole.copy()
            broken[place] = value
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


def test_a_file_without_a_place_in_space_is_refused(tmp_path):
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
    case = read_case(files)
    assert list(case.volumes) == ["t2", "t1"] and case.geometry.path == files["t2"]
    assert np.array_equal(case.volumes["t1"], read_volume(files["t1"])[0])
    assert not np.array_equal(case.volumes["t1"], case.volumes["t2"])


def test_two_shapes_in_a_case_are_refused_by_both_names(tmp_path):
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    write_new(tmp_path / "b.nii", noise((4, 5, 7)), np.eye(4))
    with pytest.raises(InputError, match=r"a\.nii is \(4, 5, 6\).*b\.nii is \(4, 5, 7"):
        read_case({"t1": tmp_path / "a.nii", "t2": tmp_path / "b.nii"})


@pytest.mark.parametrize("shift, fits", [(1e-4, True), (2e-3, False)])
def test_affines_in_a_case_may_differ_by_less_than_a_part_of_a_voxel(
    tmp_path, shift, fits
):
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    moved[1, 3] = shift
    write_new(tmp_path / "a.nii", noise(), np.eye(4))
    write_new(tmp_path / "b.nii", noise(), moved)
    files = {"t1": tmp_path / "a.nii", "t2": tmp_path / "b.nii"}
    if fits:
        assert set(read_case(files).volumes) == {"t1", "t2"}
    else:
        with pytest.raises(InputError, match=r"a\.nii.*b\.nii.*0\.002"):
            read_case(files)


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
