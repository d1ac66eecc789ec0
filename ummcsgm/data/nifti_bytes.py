"""The bytes of an image file: as many as its header tells of, never many more.

A claim takes no memory before the bytes are there, and what would unpack to more than
was claimed is not unpacked.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ummcsgm.types import InputError

LARGEST = 2**28  # voxels, of 8 bytes at most: 640 x 640 x 640 are fewer
LONGEST = 2**26  # bytes before the voxels: a header with its extensions
EXCESS = 2**20  # bytes that may follow the ones that are wanted; they are not kept
CHUNK = 2**22


def check_claims(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, start: int, size: int
) -> None:
    """A header of `size` bytes tells of an array of real numbers that can be read.

    Raises:
        InputError: they are not real numbers, not a volume, too many, or not where
            the voxels of a file can be.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path}: holds {dtype} values, wanted real numbers")
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path}: holds an array of {shape}, wanted a 3-D volume")
    if math.prod(shape) > LARGEST:
        raise InputError(
            f"{path}: the header is damaged or the file too large: it tells of "
            f"{math.prod(shape)} voxels, {shape}; at most {LARGEST} are read"
        )
    if not size + 4 <= start <= LONGEST:
        raise InputError(
            f"{path}: the header is damaged: it puts the first voxel at byte {start}, "
            f"wanted {size + 4} to {LONGEST}"
        )


def read_head(path: Path, count: int) -> bytes:
    """The first `count` bytes in `path`, or all where there are fewer.

    Raises:
        InputError: the file is missing, unreadable or damaged where it begins.
    """
    with _unpacked(path) as stream:
        return bytes(_read(stream, count))


def read_all(path: Path, count: int) -> bytearray:
    """The first `count` bytes in `path`, which holds at most 1 MiB besides.

    A gzipped file was unpacked to its end and has the right check sum.

    Raises:
        InputError: the file is missing, unreadable or damaged, shorter than `count`,
            or longer by more.
    """
    with _unpacked(path) as stream:
        content = _read(stream, count)
        if len(content) < count:
            raise InputError(
                f"{path}: the file is damaged or cut short: it holds {len(content)} "
                f"bytes, wanted {count}"
            )
        if len(_read(stream, EXCESS + 1)) > EXCESS:
            raise InputError(
                f"{path}: the file is damaged: it goes on for more than {EXCESS} bytes "
                f"after the {count} that its header tells of"
            )
        return content


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes in `path` as a stream; damage met while reading is an InputError."""
    try:
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file")
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            else:
                yield file
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: the file is damaged or cut short ({error})") from None


def _read(stream: BinaryIO, count: int) -> bytearray:
    """At most `count` bytes of `stream`; what it does not hold takes no memory."""
    content = bytearray()
    while left := count - len(content):
        chunk = stream.read(min(CHUNK, left))
        if not chunk:
            break
        content += chunk
    return content
