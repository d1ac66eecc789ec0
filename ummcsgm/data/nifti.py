"""NIfTI files read into [Z, Y, X] RAS+ volumes and written back as they came.

Inside the program volume[z] is an axial slice, y grows to anterior and x to the
right. On disk the axes may lie in any of 48 ways, and there they stay.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from ummcsgm.data.nifti_bytes import check_claims, read_all, read_head
from ummcsgm.data.nifti_values import check_finite, check_values, physical, stored_as
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import write_atomic

RAS = np.array([[0, 1], [1, 1], [2, 1]])
TOLERANCE = 1e-3  # of a voxel, between the affines of one subject's files
DESCRIPTION = "synthetic, ummcsgm"
DESCRIBED = {nib.Nifti1Header: slice(148, 228), nib.Nifti2Header: slice(240, 320)}
HEAD = 544  # bytes: the longer header, and the mark that extensions follow
QUIET = logging.Logger("quiet", logging.CRITICAL + 1)  # for nibabel's header checks


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


def read_case(files: dict[str, Path], volumes: Mapping[str, int]) -> Case:
    """The volumes of `files` lie on one grid, and are returned with that grid.

    A modality in `volumes` is the volume of that number of its 4-D file. A file that
    serves several modalities is read once.

    Raises:
        InputError: a file is unreadable, or two differ in shape or in affine.
    """
    read = {}
    for path in dict.fromkeys(files.values()):
        whole = _read_file(path)
        for modality in [name for name in files if files[name] == path]:
            read[modality] = _volume(path, *whole, volumes.get(modality))
    geometry = read[next(iter(files))][1]
    for _, other in read.values():
        check_same_grid(geometry, other)
    return Case({modality: read[modality][0] for modality in files}, geometry)


def read_volume(path: Path, index: int | None = None) -> tuple[np.ndarray, Geometry]:
    """`path` as a finite, non-constant float32 volume [Z, Y, X] and its geometry.

    With `index`, the volume of that number, from 0, of a 4-D file; its geometry is
    that of a 3-D file.

    Raises:
        InputError: the file is missing, damaged, not NIfTI, not placed in space, not
            3-D or, with `index`, not 4-D or of fewer volumes; or the volume holds
            NaN, infinities, zeros only or one value only.
    """
    return _volume(path, *_read_file(path), index)


def read_segmentation(path: Path) -> tuple[np.ndarray, Geometry]:
    """As `read_volume`, of a volume that may hold one value only, as where there is no
    tumour."""
    return _volume(path, *_read_file(path), None, check_finite)


def read_geometry(path: Path) -> Geometry:
    """How the volumes in `path` lie, as its header tells; no voxel is read.

    Raises:
        InputError: the header is missing, damaged or does not place them in space.
    """
    header, dtype, start = _read_header(path)
    return _geometry(path, header, header.get_data_shape()[:3])


def spacing(geometry: Geometry) -> tuple[float, float, float]:
    """(dz, dy, dx): mm from voxel to voxel along the axes of [Z, Y, X]."""
    edges = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    x, y, z = edges[np.argsort(geometry.orientation[:, 0])].tolist()
    return z, y, x


def spacing_in_plane(geometry: Geometry) -> tuple[float, float]:
    """(dy, dx): mm from voxel to voxel in an axial slice [Y, X]."""
    return spacing(geometry)[1:]


def write_like(path: Path, volume: np.ndarray, geometry: Geometry) -> None:
    """The file at `path` holds `volume` [Z, Y, X] as `geometry`'s own file would.

    Affine, orientation, type and header are those of the reference. What a float type
    or the scaling of an integer type holds exactly comes back bitwise; else the values
    are rounded, by at most 1/1000 of the largest or as finely as the integer type
    allows, in a new scaling if need be. Nothing is clipped, and 0 reads back as 0.
    """
    dtype, scaling = geometry.header.get_data_dtype(), _scaling(geometry.header)
    stored, *scaling = stored_as(dtype, scaling, _to_stored_axes(volume, geometry))
    image = _synthetic_image(stored, geometry)
    image.header.set_slope_inter(*scaling)
    _write_bytes(Path(path), image.to_bytes())


def image_like(volume: np.ndarray, geometry: Geometry) -> nib.Nifti1Image:
    """Returns `volume` [Z, Y, X] as a float32 nibabel image on the grid of `geometry`."""
    return _synthetic_image(_to_stored_axes(volume, geometry), geometry)


def _to_stored_axes(volume: np.ndarray, geometry: Geometry) -> np.ndarray:
    back = ornt_transform(RAS, geometry.orientation)
    array = apply_orientation(np.asarray(volume, np.float32).transpose(2, 1, 0), back)
    return array.reshape(geometry.shape)


def _synthetic_image(stored: np.ndarray, geometry: Geometry) -> nib.Nifti1Image:
    second = isinstance(geometry.header, nib.Nifti2Header)
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    image = kind(stored, geometry.affine, geometry.header, dtype=stored.dtype)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header["descrip"] = DESCRIPTION
    return image


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


def is_synthetic(path: Path) -> bool:
    """Whether the header at `path` says that `write_like` wrote it.

    False where there is no file, or none that can be read: reading it will say why.
    """
    try:
        head = read_head(path, HEAD)
    except InputError:
        return False
    place = DESCRIBED.get(_kind(head))
    return place is not None and head[place].rstrip(b"\0") == DESCRIPTION.encode()


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


def _read_file(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The checked header in `path`, and the array it tells of, as it is stored."""
    header, dtype, start = _read_header(path)
    shape, size = header.get_data_shape(), header.sizeof_hdr
    count = math.prod(shape)
    content = read_all(path, start + count * dtype.itemsize)
    if content[size]:
        with _damage_named(path):
            extensions = io.BytesIO(content[size + 4 : start])
            swapped = not header.structarr.dtype.isnative
            header.extensions = header.exts_klass.from_fileobj(
                extensions, start - size - 4, swapped
            )
    return header, np.frombuffer(content, dtype, count, start).reshape(shape, order="F")


def _read_header(path: Path) -> tuple[nib.Nifti1Header, np.dtype, int]:
    """The checked header in `path`, the type of its voxels, and where they begin."""
    head = read_head(path, HEAD)
    kind = _kind(head)
    if kind is None:
        raise InputError(f"{path}: this is not a NIfTI file, .nii or .nii.gz")
    size = kind.sizeof_hdr
    with _damage_named(path):
        header = kind(head[:size], check=False)
        header.check_fix(QUIET)
        header.get_slope_inter()
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        start = header.get_data_offset()
    check_claims(path, shape, dtype, start, size)
    return header, dtype, start


def _kind(head: bytes) -> type[nib.Nifti1Header] | None:
    """The kind of header that begins a NIfTI file with its volume in the same file."""
    kinds = {b"n+1\0": nib.Nifti1Header, b"n+2\0": nib.Nifti2Header}
    return kinds.get(head[344:348], kinds.get(head[4:8]))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever nibabel and numpy raise at a damaged header is told as one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # struct.error, OverflowError, KeyError ...: anything
        raise InputError(f"{path}: the NIfTI header is damaged ({error})") from None


def _volume(
    path: Path,
    header: nib.Nifti1Header,
    stored: np.ndarray,
    index: int | None,
    check: Callable[[Path, np.ndarray], None] = check_values,
) -> tuple[np.ndarray, Geometry]:
    """The volume [Z, Y, X] in `stored`, the one of number `index` where it is 4-D."""
    if index is not None:
        _check_index(path, stored.shape, index)
        stored = stored[:, :, :, index].reshape(stored.shape[:3])
        with _damage_named(path):
            header = header.copy()
            header.set_data_shape(stored.shape)
    geometry = _geometry(path, header, stored.shape)
    volume = physical(stored.reshape(stored.shape[:3]), *_scaling(header))
    check(path, volume)
    volume = apply_orientation(volume, geometry.orientation)
    return np.ascontiguousarray(volume.transpose(2, 1, 0)), geometry


def _check_index(path: Path, shape: tuple[int, ...], index: int) -> None:
    """An array of `shape` is a series of volumes that has one of number `index`."""
    if len(shape) < 4 or any(size != 1 for size in shape[4:]):
        raise InputError(
            f"{path}: holds an array of {shape}, wanted a 4-D one: its volume {index} was asked for"
        )
    if not 0 <= index < shape[3]:
        raise InputError(
            f"{path}: holds {shape[3]} volumes, an array of {shape}, and volume "
            f"{index}, counted from 0, was asked for"
        )


def _geometry(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]) -> Geometry:
    """The geometry of a volume in three dimensions placed in space."""
    if any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path}: holds {math.prod(shape[3:])} volumes, an array of {shape}, "
            "wanted one 3-D volume; 4-D is read only where the layout says which of "
            "its volumes is which modality"
        )
    with _damage_named(path):
        affine = np.array(header.get_best_affine())
        placed = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
        orientation = io_orientation(affine) if placed else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        rows = affine[:3].tolist()
        raise InputError(f"{path}: the affine {rows} does not place it in space")
    return Geometry(Path(path), shape, affine, header, orientation)


def check_same_grid(one: Geometry, other: Geometry) -> None:
    """Raises InputError unless `one` and `other` have one shape, and affines equal to a
    part of a voxel."""
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


def _write_bytes(path: Path, content: bytes) -> None:
    """`path` holds `content`, gzipped where its name ends in .gz."""
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    write_atomic(path, content)
