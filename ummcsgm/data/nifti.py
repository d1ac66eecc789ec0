"""NIfTI files read as [Z, Y, X] RAS+ volumes, and volumes written like a reference file.

In memory volume[z] is an axial slice, y grows to anterior and x to the right. On disk the
axes may lie in any of 48 ways, and there they stay.

Files are not trusted: memory is taken for bytes that are read, never for a size that a header
claims, and a gzipped file is not unpacked beyond that size.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import write_atomic

RAS = np.array([[0, 1], [1, 1], [2, 1]])
TOLERANCE = 1e-3  # of a voxel, between the affines of one subject's files
ROUNDING = 1e-3  # of the largest magnitude: what an integer type may round away
DESCRIPTION = "synthetic, ummcsgm"
DESCRIPTION_BYTES = {nib.Nifti1Header: slice(148, 228), nib.Nifti2Header: slice(240, 320)}
HEADER_BYTES = 544  # the longer header, and the flag that extensions follow
MAX_VOXELS = 2**28  # of 8 bytes at most: 640 x 640 x 640 are fewer
MAX_HEADER_BYTES = 2**26  # before the voxels: a header with its extensions
MAX_EXCESS_BYTES = 2**20  # that may follow the voxels; they are ignored
CHUNK_BYTES = 2**22
SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # for nibabel's header checks


class NiftiError(InputError):
    """A file that is missing, no NIfTI, damaged or cut short; `reason` says which."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ValueTypeError(NiftiError):
    """The voxels are not real numbers."""


class NotAVolumeError(NiftiError):
    """The array has fewer than three axes, or an axis of no voxels."""


class VolumeCountError(NiftiError):
    """The file holds several volumes instead of one, or lacks the volume that is wanted."""


class UnplacedError(NiftiError):
    """The affine does not place the volume in space."""


class NotFiniteError(NiftiError):
    """Some voxels are NaN or infinite."""


class EmptyVolumeError(NiftiError):
    """Every voxel is 0."""


class ConstantVolumeError(NiftiError):
    """Every voxel has the same value, which is not 0."""


@dataclass(frozen=True)
class Geometry:
    """How a volume lies in its file: all that is needed to write another like it."""

    path: Path
    shape: tuple[int, ...]  # as stored, with trailing axes of 1
    affine: np.ndarray  # stored voxel indices to mm, RAS+
    header: nib.Nifti1Header
    orientation: np.ndarray  # nibabel's (axis, sign) rows, stored axes to RAS+


def read_volumes(
    files: Mapping[str, Path], volume_indices: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], Geometry]:
    """The volumes [Z, Y, X] of `files` by modality, and the geometry of the first.

    A modality in `volume_indices` is the volume with that index of its 4-D file. A file
    that serves several modalities is read once.

    Raises:
        InputError: a file is unreadable, or two differ in shape or in affine.
    """
    read = {}
    for path in dict.fromkeys(files.values()):
        header, stored = _read_file(path)
        for modality in [name for name in files if files[name] == path]:
            read[modality] = _volume(path, header, stored, volume_indices.get(modality))
    geometry = read[next(iter(files))][1]
    for _, other in read.values():
        check_same_grid(geometry, other)
    return {modality: read[modality][0] for modality in files}, geometry


def read_volume(path: Path, index: int | None = None) -> tuple[np.ndarray, Geometry]:
    """`path` as a finite, non-constant float32 volume [Z, Y, X], and its geometry.

    With `index`, the volume with that index, from 0, of a 4-D file; its geometry is that
    of a 3-D file.

    Raises:
        NiftiError: the file is missing, damaged, not NIfTI, not placed in space, not
            3-D or, with `index`, not 4-D or of fewer volumes; or the volume holds
            NaN, infinities, zeros only or one value only.
    """
    return _volume(path, *_read_file(path), index)


def read_segmentation(path: Path) -> tuple[np.ndarray, Geometry]:
    """As `read_volume`, of a volume that may be constant: there may be no tumour."""
    return _volume(path, *_read_file(path), None, allow_constant=True)


def read_geometry(path: Path) -> Geometry:
    """How the volumes in `path` lie, from its header alone.

    Raises:
        NiftiError: the header is missing, damaged or does not place them in space.
    """
    header = _read_header(path)[0]
    return _geometry(path, header, header.get_data_shape()[:3])


def spacing(geometry: Geometry) -> tuple[float, float, float]:
    """(dz, dy, dx): mm from voxel to voxel along the axes of [Z, Y, X]."""
    edges = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    x, y, z = edges[np.argsort(geometry.orientation[:, 0])].tolist()
    return z, y, x


def spacing_in_plane(geometry: Geometry) -> tuple[float, float]:
    """(dy, dx): mm from voxel to voxel in an axial slice [Y, X]."""
    return spacing(geometry)[1:]


def same_grid(first: Geometry, second: Geometry) -> bool:
    """Whether both have one shape, and affines equal to a part of a voxel."""
    if first.shape[:3] != second.shape[:3]:
        return False
    voxel = np.linalg.norm(first.affine[:3, :3], axis=0).min()
    return bool(np.abs(first.affine - second.affine).max() <= TOLERANCE * voxel)


def check_same_grid(first: Geometry, second: Geometry) -> None:
    """Raises InputError unless both have one shape and one affine (see `same_grid`)."""
    if first.shape[:3] != second.shape[:3]:
        raise InputError(
            f"{first.path} is {first.shape[:3]} voxels but {second.path} is "
            f"{second.shape[:3]}; files of one subject must lie on one grid"
        )
    if not same_grid(first, second):
        raise InputError(
            f"{first.path} has the affine {first.affine[:3].round(4).tolist()} but "
            f"{second.path} has {second.affine[:3].round(4).tolist()}; files of one "
            "subject must lie on one grid"
        )


def write_like(path: Path, volume: np.ndarray, geometry: Geometry) -> None:
    """Writes `volume` [Z, Y, X] to `path` as the file of `geometry` would hold it.

    Affine, orientation, type and header are those of the reference. Values that its type and
    scaling hold exactly are read back bitwise; others are rounded, by at most 1/1000 of the
    largest or as finely as the integer type allows, with a new scaling if necessary.
    Nothing is clipped, and 0 is read back as 0.
    """
    dtype, scaling = geometry.header.get_data_dtype(), _scaling(geometry.header)
    stored, *scaling = _encode(dtype, scaling, _to_stored_axes(volume, geometry))
    image = _synthetic_image(stored, geometry)
    image.header.set_slope_inter(*scaling)
    _write_bytes(Path(path), image.to_bytes())


def image_like(volume: np.ndarray, geometry: Geometry) -> nib.Nifti1Image:
    """Returns `volume` [Z, Y, X] as a float32 nibabel image on the grid of `geometry`."""
    return _synthetic_image(_to_stored_axes(volume, geometry), geometry)


def is_image(value: object) -> bool:
    """Returns whether `value` is a nibabel image."""
    return isinstance(value, nib.spatialimages.SpatialImage)


def write_image(path: Path, volume: object, spacing: tuple[float, float, float]) -> None:
    """Writes a nibabel NIfTI image, or an array [X, Y, Z] in RAS+ orientation whose voxels
    have the (x, y, z) `spacing` in mm, as float32.

    Raises:
        InputError: it is another kind of image, or the array is not 3-D.
    """
    if not is_image(volume):
        values = np.asarray(volume)
        if values.ndim != 3:
            raise InputError(
                f"{Path(path).stem} is an array of shape {values.shape}; wanted [X, Y, Z]"
            )
        return write_new(path, values.astype(np.float32), np.diag([*spacing, 1.0]))
    if not isinstance(volume, nib.Nifti1Pair):
        raise InputError(f"{Path(path).stem} is a {type(volume).__name__}; wanted a NIfTI image")
    values = np.asarray(volume.dataobj, np.float32)
    kind = nib.Nifti2Image if isinstance(volume, nib.Nifti2Pair) else nib.Nifti1Image
    image = kind(values, volume.affine, volume.header, dtype=np.float32)
    _write_bytes(Path(path), image.to_bytes())


def write_new(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Writes `volume` [X, Y, Z] with `affine` in mm to `path`, as NIfTI-1.

    The file has the volume's type, sform and qform codes of 1, and the same bytes each
    time; it appears whole or not at all.
    """
    image = nib.Nifti1Image(volume, affine, dtype=volume.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    _write_bytes(Path(path), image.to_bytes())


def is_synthetic(path: Path) -> bool:
    """Whether the header at `path` says that `write_like` wrote it.

    False where there is no file, or none that can be read: reading it will say why.
    """
    try:
        with _unpacked(path) as stream:
            head = bytes(_read(stream, HEADER_BYTES))
    except InputError:
        return False
    position = DESCRIPTION_BYTES.get(_header_type(head))
    return position is not None and head[position].rstrip(b"\0") == DESCRIPTION.encode()


def _to_stored_axes(volume: np.ndarray, geometry: Geometry) -> np.ndarray:
    """`volume` [Z, Y, X] as an array in the axes and the shape of the reference file."""
    to_stored = ornt_transform(RAS, geometry.orientation)
    array = apply_orientation(np.asarray(volume, np.float32).transpose(2, 1, 0), to_stored)
    return array.reshape(geometry.shape)


def _synthetic_image(stored: np.ndarray, geometry: Geometry) -> nib.Nifti1Image:
    is_nifti2 = isinstance(geometry.header, nib.Nifti2Header)
    image_type = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
    image = image_type(stored, geometry.affine, geometry.header, dtype=stored.dtype)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header["descrip"] = DESCRIPTION
    return image


def _volume(
    path: Path,
    header: nib.Nifti1Header,
    stored: np.ndarray,
    index: int | None,
    allow_constant: bool = False,
) -> tuple[np.ndarray, Geometry]:
    """The volume [Z, Y, X] in `stored`, the one with `index` where that is 4-D."""
    if index is not None:
        _check_index(path, stored.shape, index)
        stored = stored[:, :, :, index].reshape(stored.shape[:3])
        with _header_damage(path):
            header = header.copy()
            header.set_data_shape(stored.shape)
    geometry = _geometry(path, header, stored.shape)
    volume = _decode(stored.reshape(stored.shape[:3]), *_scaling(header))
    _check_values(path, volume, allow_constant)
    volume = apply_orientation(volume, geometry.orientation)
    return np.ascontiguousarray(volume.transpose(2, 1, 0)), geometry


def _check_index(path: Path, shape: tuple[int, ...], index: int) -> None:
    """Raises VolumeCountError unless an array of `shape` has a volume with `index`."""
    if len(shape) < 4 or any(size != 1 for size in shape[4:]):
        raise VolumeCountError(
            path, f"holds an array of {shape}, wanted a 4-D one: its volume {index} was asked for"
        )
    if not 0 <= index < shape[3]:
        raise VolumeCountError(
            path,
            f"holds {shape[3]} volumes, an array of {shape}, and volume "
            f"{index}, counted from 0, was asked for",
        )


def _check_values(path: Path, volume: np.ndarray, allow_constant: bool) -> None:
    broken = volume.size - np.count_nonzero(np.isfinite(volume))
    if broken:
        reason = f"{broken} of {volume.size} voxels are NaN or infinite, wanted none"
        raise NotFiniteError(path, reason)
    if allow_constant or volume.min() != volume.max():
        return
    value = float(volume.flat[0])
    if value == 0:
        raise EmptyVolumeError(path, "the volume is empty: every voxel is 0, wanted an image")
    raise ConstantVolumeError(path, f"the volume is {value:g} everywhere, wanted an image")


def _geometry(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]) -> Geometry:
    """The geometry of one volume that is placed in space."""
    if any(size != 1 for size in shape[3:]):
        raise VolumeCountError(
            path,
            f"holds {math.prod(shape[3:])} volumes, an array of {shape}, "
            "wanted one 3-D volume; 4-D is read only where the layout says which of "
            "its volumes is which modality",
        )
    with _header_damage(path):
        affine = np.array(header.get_best_affine())
        placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
        orientation = io_orientation(affine) if placed else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        raise UnplacedError(path, f"the affine {affine[:3].tolist()} does not place it in space")
    return Geometry(Path(path), shape, affine, header, orientation)


# Bytes


def _read_file(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The checked header in `path`, and the array as it is stored.

    At most 1 MiB may follow it. A gzipped file is read to its end, where its checksum is.
    """
    header, dtype, start = _read_header(path)
    shape, size = header.get_data_shape(), header.sizeof_hdr
    num_bytes = start + math.prod(shape) * dtype.itemsize
    with _unpacked(path) as stream:
        content = _read(stream, num_bytes)
        if len(content) < num_bytes:
            found = f"it holds {len(content)} bytes, wanted {num_bytes}"
            raise NiftiError(path, f"the file is damaged or cut short: {found}")
        if len(_read(stream, MAX_EXCESS_BYTES + 1)) > MAX_EXCESS_BYTES:
            raise NiftiError(
                path,
                f"the file is damaged: it goes on for more than {MAX_EXCESS_BYTES} bytes "
                f"after the {num_bytes} that its header tells of",
            )
    if content[size]:
        with _header_damage(path):
            extensions = io.BytesIO(content[size + 4 : start])
            swapped = not header.structarr.dtype.isnative
            header.extensions = header.exts_klass.from_fileobj(
                extensions, start - size - 4, swapped
            )
    stored = np.frombuffer(content, dtype, math.prod(shape), start)
    return header, stored.reshape(shape, order="F")


def _read_header(path: Path) -> tuple[nib.Nifti1Header, np.dtype, int]:
    """The checked header in `path`, the type of its voxels, and the first voxel's byte."""
    with _unpacked(path) as stream:
        head = bytes(_read(stream, HEADER_BYTES))
    header_type = _header_type(head)
    if header_type is None:
        raise NiftiError(path, "this is not a NIfTI file, .nii or .nii.gz")
    size = header_type.sizeof_hdr
    with _header_damage(path):
        header = header_type(head[:size], check=False)
        header.check_fix(SILENT)
        header.get_slope_inter()
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        start = header.get_data_offset()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueTypeError(path, f"holds {dtype} values, wanted real numbers")
    if len(shape) < 3 or min(shape) < 1:
        raise NotAVolumeError(path, f"holds an array of {shape}, wanted a 3-D volume")
    if math.prod(shape) > MAX_VOXELS:
        raise NiftiError(
            path,
            f"the header is damaged or the file too large: it tells of "
            f"{math.prod(shape)} voxels, {shape}; at most {MAX_VOXELS} are read",
        )
    if not size + 4 <= start <= MAX_HEADER_BYTES:
        raise NiftiError(
            path,
            f"the header is damaged: it puts the first voxel at byte {start}, "
            f"wanted {size + 4} to {MAX_HEADER_BYTES}",
        )
    return header, dtype, start


def _header_type(head: bytes) -> type[nib.Nifti1Header] | None:
    """The header class of a NIfTI file that begins with `head`, None for other files."""
    types = {b"n+1\0": nib.Nifti1Header, b"n+2\0": nib.Nifti2Header}
    return types.get(head[344:348], types.get(head[4:8]))


@contextmanager
def _header_damage(path: Path) -> Iterator[None]:
    """Turns whatever nibabel and numpy raise at a damaged header into a NiftiError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # struct.error, OverflowError, KeyError ...: anything
        raise NiftiError(path, f"the NIfTI header is damaged ({error})") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes in `path` as a stream; damage met while reading is a NiftiError."""
    try:
        if not Path(path).is_file():
            raise NiftiError(path, "there is no such file")
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            else:
                yield file
    except (EOFError, OSError, zlib.error) as error:
        raise NiftiError(path, f"the file is damaged or cut short ({error})") from None


def _read(stream: BinaryIO, count: int) -> bytearray:
    """At most `count` bytes of `stream`, in memory only when they are there."""
    content = bytearray()
    while left := count - len(content):
        chunk = stream.read(min(CHUNK_BYTES, left))
        if not chunk:
            break
        content += chunk
    return content


def _write_bytes(path: Path, content: bytes) -> None:
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    write_atomic(path, content)


# Values: the integers in a file stand for level * slope + intercept


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """The slope and intercept of `header`, 1 and 0 where it has none."""
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _decode(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """The float32 values that `stored` stands for."""
    with np.errstate(all="ignore"):  # infinite values are found by `_check_values`
        if (slope, inter) == (1.0, 0.0):
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * slope + inter).astype(np.float32)


def _encode(
    dtype: np.dtype, scaling: tuple[float, float], volume: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """What to store for `volume` in `dtype`, with its slope and intercept.

    `scaling` stays if it holds all values within the range of the type: 0 exactly, others up
    to rounding by 1/1000 of the largest magnitude, or by what the finest scaling of them
    rounds. Else this finest scaling takes its place.
    """
    if dtype.kind == "f":
        return volume.astype(dtype), 1.0, 0.0
    new = _new_scaling(volume, dtype)
    stored = _levels(volume, dtype, *scaling)
    if stored is None or not _is_close(_decode(stored, *scaling), volume, new[0] / 2):
        stored, scaling = _levels(volume, dtype, *new), new
    return stored, *scaling


def _is_close(decoded: np.ndarray, volume: np.ndarray, finest: float) -> bool:
    """Whether `decoded` is `volume` up to rounding by 1/1000 or by `finest`, and 0 is 0."""
    rounding = max(ROUNDING * float(np.abs(volume).max()), finest)
    near = np.abs(decoded.astype(np.float64) - volume).max() <= rounding
    return np.array_equal(decoded, volume) or (near and not decoded[volume == 0].any())


def _levels(volume: np.ndarray, dtype: np.dtype, slope: float, inter: float) -> np.ndarray | None:
    """The integers nearest to `volume`; None where `dtype` does not hold all of them."""
    levels = np.rint((volume.astype(np.float64) - inter) / slope)
    limits = np.iinfo(dtype)
    inside = limits.min <= levels.min() and levels.max() < limits.max + 1.0
    return levels.astype(dtype) if inside else None


def _new_scaling(volume: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """A slope and an intercept by which `volume` fits `dtype` and 0 stays 0.

    The slope is a power of two: its multiples are then exact in the header's
    float32, so that level * slope + intercept is 0 and not nearly 0.
    """
    low, high = min(float(volume.min()), 0.0), max(float(volume.max()), 0.0)
    top = min(np.iinfo(dtype).max, 2**24)
    if dtype.kind == "i":
        return _power_of_two(max(high, -low) / top), 0.0
    slope = _power_of_two((high - low) / (top - 1))
    return slope, -slope * float(np.ceil(-low / slope))


def _power_of_two(value: float) -> float:
    """The least power of two in float32 that is at least `value`; 1 for 0."""
    return 2.0 ** max(float(np.ceil(np.log2(value))), -126.0) if value > 0 else 1.0
