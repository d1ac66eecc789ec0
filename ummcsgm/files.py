"""Nothing is ever half-written: a file is written beside its place, then renamed."""

import json
import os
import pathlib
import uuid
from typing import Any

from ummcsgm.types import InputError


def read_json(path: pathlib.Path) -> Any:
    """What the JSON file at `path` holds. Raises InputError if it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it.") from None


def write_whole(path: pathlib.Path, content: bytes | str) -> None:
    """`path` holds `content`, all of it, or what it held before.

    The folder is made where it is missing. Safe with several writers: the last one
    wins.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
