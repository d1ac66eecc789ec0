"""The slices of Figure 2 as small PNGs (sprites) that the page's script cuts into tiles.

A sprite is one slice of one subject: below one another the truth, every method and the
predicted standard deviation; side by side the modalities; 8-bit grey levels.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ummcsgm.reporting.figures import brain_box, error_limit
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import UNREADABLE

SD = "sd"


@dataclass(frozen=True)
class SubjectSprites:
    """A subject's slices: their z, the rows of a sprite by name, the height and width of a
    tile in pixels, and the sprites as PNGs in base64.

    `limits` are the tops of colour scales: "error" for the errors of all methods, "sd" for
    those of the method whose standard deviation is predicted.
    """

    slices: tuple[int, ...]
    rows: tuple[str, ...]
    size: tuple[int, int]
    limits: dict[str, int]
    sprites: tuple[str, ...]


def read_sprites(path: Path, methods: tuple[str, ...], network: str) -> SubjectSprites:
    """The slices in a gallery file of those `methods` that it has.

    `network` is the method that predicts the standard deviation.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        truth, slices = arrays["truth"], arrays["z"]
    except (*UNREADABLE, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it.") from None
    found = tuple(name for name in methods if name in arrays)
    rows = ("truth", *found, *([SD] if SD in arrays else []))
    box = brain_box(truth)
    tiles = np.stack([arrays[row][:, :, *box] for row in rows])  # [R, M, S, H, W]
    tiles = tiles[..., ::-1, ::-1].astype(np.uint8)  # as a radiologist sees them
    sprites = [np.block([list(row) for row in tiles[:, :, k]]) for k in range(len(slices))]
    errors = {name: np.abs(tiles[rows.index(name)].astype(np.int16) - tiles[0]) for name in found}
    limits = {"error": error_limit(tiles[0], list(errors.values()))}
    limits[SD] = limits["error"]
    if network in errors:
        limits[SD] = error_limit(tiles[0], [errors[network]])
    images = tuple(map(encode_png, sprites))
    return SubjectSprites(tuple(map(int, slices)), rows, tiles.shape[3:], limits, images)


def encode_png(image: Array) -> str:
    """An 8-bit grey PNG of `image` [H, W] in base64."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
