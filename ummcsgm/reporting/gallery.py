"""The slices of Figure 2 as small pictures that a browser puts together.

A sprite is one slice of one subject: below one another the truth, every method and the
predicted standard deviation, side by side the modalities, as an 8-bit grey PNG.
"""

import base64
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import UNREADABLE

MARGIN = 3  # background kept around the brain
SD = "sd"


@dataclass(frozen=True)
class Shown:
    """A subject's slices: their places along z, the rows of a sprite by name, the size
    of a tile in pixels, and the sprites as PNGs in base64. `limits` are the tops of
    scales: of all methods' errors, and of those the predicted sd belongs to."""

    slices: tuple[int, ...]
    rows: tuple[str, ...]
    size: tuple[int, int]
    limits: dict[str, int]
    sprites: tuple[str, ...]


def read_subject(path: Path, methods: tuple[str, ...], network: str) -> Shown:
    """The slices in the file at `path`, of those `methods` that are in it.

    `network` is the method that predicts the standard deviation.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        truth, places = arrays["truth"], arrays["z"]
    except (*UNREADABLE, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it.") from None
    named = tuple(name for name in methods if name in arrays)
    rows = ("truth", *named, *([SD] if SD in arrays else []))
    box = _brain_box(truth)
    tiles = np.stack([arrays[row][:, :, *box] for row in rows])  # [R, M, S, H, W]
    tiles = tiles[..., ::-1, ::-1].astype(np.uint8)  # as a radiologist sees them
    sprites = tuple(base64.b64encode(png(one)).decode() for one in _sprites(tiles))
    own = [tile for name, tile in zip(rows, tiles, strict=True) if name == network]
    limits = {"error": error_limit(tiles[0], tiles[1 : 1 + len(named)])}
    limits[SD] = error_limit(tiles[0], np.stack(own)) if own else limits["error"]
    return Shown(tuple(map(int, places)), rows, tiles.shape[3:], limits, sprites)


def error_limit(truth: Array, estimates: Array) -> int:
    """Tens of grey levels that 1 % of the errors in the brain are beyond."""
    counts = np.zeros(256, int)
    for estimate in estimates:
        error = np.abs(estimate.astype(np.int16) - truth)[truth > 0]
        counts += np.bincount(error, minlength=256)
    share = np.cumsum(counts) / max(1, counts.sum())
    return int(np.clip(10 * np.ceil(np.searchsorted(share, 0.99) / 10), 10, 255))


def png(image: Array) -> bytes:
    """An 8-bit grey PNG of `image` [H, W], every line under the filter that leaves the
    smallest numbers."""
    height, width = image.shape
    left, above, corner = (
        np.pad(image, ((down, 0), (right, 0)))[:height, :width].astype(np.int16)
        for down, right in ((0, 1), (1, 0), (1, 1))
    )
    guesses = [0 * left, left, above, (left + above) // 2, _paeth(left, above, corner)]
    lines = np.stack([(image - guess).astype(np.uint8) for guess in guesses])
    kind = np.abs(lines.view(np.int8).astype(np.int16)).sum(-1).argmin(0)
    chosen = lines[kind, np.arange(height)]
    data = np.column_stack([kind.astype(np.uint8), chosen]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _paeth(left: Array, above: Array, corner: Array) -> Array:
    """Of the three neighbours the one nearest to left + above - corner."""
    nearest = np.argmin(np.abs(left + above - corner - np.stack([left, above, corner])), axis=0)
    return np.choose(nearest, [left, above, corner])


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def _sprites(tiles: Array) -> Iterator[Array]:
    """Each slice of tiles [R, M, S, H, W] as one image [R H, M W]."""
    rows, modalities, slices, height, width = tiles.shape
    for place in range(slices):
        one = tiles[:, :, place].transpose(0, 2, 1, 3)
        yield one.reshape(rows * height, modalities * width)


def _brain_box(truth: Array) -> tuple[slice, slice]:
    """The rows and columns of a subject's brain in all slices, with a margin."""
    rows, columns = np.nonzero((truth > 0).any(axis=(0, 1)))
    if len(rows) == 0:
        return slice(None), slice(None)
    return tuple(slice(max(0, at.min() - MARGIN), at.max() + 1 + MARGIN) for at in (rows, columns))
