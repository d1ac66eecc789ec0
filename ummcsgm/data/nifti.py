"""NIfTI files read into [Z, Y, X] RAS+ volumes and written back as they came.

Inside the program volume[z] is an axial slice, y grows to anterior and x to the
right. On disk the axes may lie in any of 48 ways, and there they stay.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from ummcsgm.files import write_whole
from ummcsgm.types import InputError

RAS = np.array([[0, 1], [1, 1], [2, 1]])
TOLERANCE = 1e-3  # of a voxel, between the affines of one subject's files
DESCRIPTION = "synthetic, ummcsgm"


@dataclass(frozen=True)
class Geometry:
    """How a volume lies in its file: all that is needed to write another like it."""

    path: Path
    shape: tuple[int, ...]  # as stored, with trailing axes of 1
    affine: np.ndarray  # stored voxel indices to mm, RAS+
    header: nib.Nifti1Header
    orientation: np.ndarray  # nibabel's (axis, sign) rows, stored axes to RAS+


@dataclass(frozen=True)
class Case:
    """One subject's volumes [Z, Y, X] by modality, and the first one's geometry."""

    volumes: dict[str, np.ndarray]
    geometry: Geometry


def read_case(files: dict[str, Path]) -> Case:
    """The volumes of `files` lie on one grid, and are returned with that grid.

    Raises:
        InputError: a file is unreadable, or two differ in shape or in affine.
    """
    read = {modality: read_volume(path) for modality, path in files.items()}
    geometry = next(geometry for _, geometry in read.values())
    for _, other in read.values():
        _check_same_grid(geometry, other)
    return Case({modality: volume for modality, (volume, _) in read.items()}, geometry)


def read_volume(path: Path) -> tuple[np.ndarray, Geometry]:
    """`path` as a finite, non-constant float32 volume [Z, Y, X] and its geometry.

    Raises:
        InputError: the file is missing, damaged, not NIfTI, not 3-D, not placed in
            space, or holds NaN, infinities, zeros only or one value only.
    """
    image = _read_image(path)
    geometry = _geometry(path, image)
    stored = image.dataobj.get_unscaled().reshape(geometry.shape[:3])
    volume = _physical(stored, *_scaling(geometry.header))
    _check_values(path, volume)
    volume = apply_orientation(volume, geometry.orientation)
    return np.ascontiguousarray(volume.transpose(2, 1, 0)), geometry


def write_like(path: Path, volume: np.ndarray, geometry: Geometry) -> None:
    """The file at `path` holds `volume` [Z, Y, X] as `geometry`'s own file would.

    Affine, orientation, type and header are those of the reference. An integer type
    without scaling takes rounded and clipped values; with scaling, the scaling is
    kept where it holds the values exactly and chosen anew where it does not, and 0
    reads back as 0 either way.
    """
    back = ornt_transform(RAS, geometry.orientation)
    there = apply_orientation(np.asarray(volume, np.float32).transpose(2, 1, 0), back)
    stored, slope, inter = _stored(there.reshape(geometry.shape), geometry.header)
    second = isinstance(geometry.header, nib.Nifti2Header)
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    image = kind(stored, geometry.affine, geometry.header, dtype=stored.dtype)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header["descrip"] = DESCRIPTION
    image.header.set_slope_inter(slope, inter)
    _write_bytes(Path(path), image.to_bytes())


def is_synthetic(path: Path) -> bool:
    """Whether the header at `path` says that `write_like` wrote it.

    False where there is no file, or none that can be read: reading it will say why.
    """
    try:
        header = nib.load(path).header
        return bytes(header["descrip"]).rstrip(b"\0").decode() == DESCRIPTION
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError):
        return False


def write_new(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """The file at `path` is NIfTI-1 and holds `volume` [X, Y, Z] with `affine` in mm.

    It has the volume's type, sform and qform codes of 1, and the same bytes each
    time; it appears whole or not at all.
    """
    image = nib.Nifti1Image(volume, affine, dtype=volume.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    _write_bytes(Path(path), image.to_bytes())


def _read_image(path: Path) -> nib.Nifti1Image:
    """The NIfTI image in `path`, all of whose bytes were read and checked."""
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{path}: the file is damaged or cut short ({error})"
        ) from None
    kinds = {b"n+1\0": nib.Nifti1Image, b"n+2\0": nib.Nifti2Image}
    kind = kinds.get(content[344:348], kinds.get(content[4:8]))
    if kind is None:
        raise InputError(f"{path}: this is not a NIfTI file, .nii or .nii.gz")
    return _parse(path, kind, content)


def _parse(path: Path, kind: type, content: bytes) -> nib.Nifti1Image:
    """The image of `content`, of real numbers and as long as its header says."""
    try:
        image = kind.from_bytes(content)
        dtype = image.get_data_dtype()
        wanted = image.dataobj.offset + dtype.itemsize * int(np.prod(image.shape))
    except (ValueError, OSError, HeaderDataError, ImageFileError) as error:
        raise InputError(f"{path}: the NIfTI header is damaged ({error})") from None
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: holds {dtype} values, wanted real numbers")
    if len(content) < wanted:
        raise InputError(
            f"{path}: the file is cut short: {len(content)} bytes, wanted {wanted}"
        )
    return image


def _geometry(path: Path, image: nib.Nifti1Image) -> Geometry:
    """The geometry of `image`, a volume in three dimensions placed in space."""
    shape = tuple(image.shape)
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape) < 1:
        raise InputError(f"{path}: holds an array of {shape}, wanted a 3-D volume")
    affine = np.array(image.affine)
    placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
    orientation = io_orientation(affine) if placed else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        rows = affine[:3].tolist()
        raise InputError(f"{path}: the affine {rows} does not place it in space")
    header = image.header.copy()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    return Geometry(Path(path), shape, affine, header, orientation)


def _check_values(path: Path, volume: np.ndarray) -> None:
    """`volume` is finite and holds more than one value."""
    broken = volume.size - np.count_nonzero(np.isfinite(volume))
    if broken:
        raise InputError(
            f"{path}: {broken} of {volume.size} voxels are NaN or infinite, wanted none"
        )
    if volume.min() == volume.max():
        value = float(volume.flat[0])
        seen = (
            "is empty: every voxel is 0" if value == 0 else f"is {value:g} everywhere"
        )
        raise InputError(f"{path}: the volume {seen}, wanted an image")


def _check_same_grid(one: Geometry, other: Geometry) -> None:
    """`one` and `other` have one shape, and affines equal to a part of a voxel."""
    if one.shape[:3] != other.shape[:3]:
        raise InputError(
            f"{one.path} is {one.shape[:3]} voxels but {other.path} is "
            f"{other.shape[:3]}; files of one subject must lie on one grid"
        )
    voxel = np.linalg.norm(one.affine[:3, :3], axis=0).min()
    if np.abs(one.affine - other.affine).max() > TOLERANCE * voxel:
        raise InputError(
            f"{one.path} has the affine {one.affine[:3].round(4).tolist()} but "
            f"{other.path} has {other.affine[:3].round(4).tolist()}; files of one "
            "subject must lie on one grid"
        )


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """The slope and intercept of `header`, 1 and 0 where it has none."""
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _physical(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """The float32 values that `stored` stands for."""
    if (slope, inter) == (1.0, 0.0):
        return stored.astype(np.float32)
    return (stored.astype(np.float64) * slope + inter).astype(np.float32)


def _stored(
    volume: np.ndarray, header: nib.Nifti1Header
) -> tuple[np.ndarray, float, float]:
    """What to store for `volume` in the type of `header`, with slope and intercept."""
    dtype = header.get_data_dtype()
    if dtype.kind == "f":
        return volume.astype(dtype), 1.0, 0.0
    scaling = _scaling(header)
    stored = _levels(volume, dtype, *scaling)
    if scaling == (1.0, 0.0) or np.array_equal(_physical(stored, *scaling), volume):
        return stored, *scaling
    scaling = _new_scaling(volume, dtype)
    return _levels(volume, dtype, *scaling), *scaling


def _levels(
    volume: np.ndarray, dtype: np.dtype, slope: float, inter: float
) -> np.ndarray:
    """The integers nearest to `volume` within the range of `dtype`."""
    levels = np.rint((volume.astype(np.float64) - inter) / slope)
    return np.clip(levels, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def _new_scaling(volume: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """A slope and an intercept by which `volume` fits `dtype` and 0 stays 0.

    The slope is a power of two: its multiples are then exact in the header's
    float32, so that level * slope + intercept is 0 and not nearly 0.
    """
    low, high = min(volume.min(), 0.0), max(volume.max(), 0.0)
    top = min(np.iinfo(dtype).max, 2**24)
    if dtype.kind == "i":
        return _power_of_two(max(high, -low) / top), 0.0
    slope = _power_of_two((high - low) / (top - 1))
    return slope, -slope * float(np.ceil(-low / slope))


def _power_of_two(value: float) -> float:
    """The least power of two not under `value`; 1 for 0."""
    return 2.0 ** float(np.ceil(np.log2(value))) if value > 0 else 1.0


def _write_bytes(path: Path, content: bytes) -> None:
    """`path` holds `content`, gzipped where its name ends in .gz."""
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    write_whole(path, content)
