"""Nothing is ever half-written: a file is written beside its place, then renamed."""

import contextlib
import hashlib
import json
import os
import pathlib
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from ummcsgm.types import InputError

# What numpy.load raises of an archive that is damaged or cut short.
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read_json(path: pathlib.Path) -> Any:
    """What the JSON file at `path` holds. Raises InputError if it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it.") from None


def with_checksum(content: dict[str, Any]) -> str:
    """`content` as JSON, with a checksum by which `read_checksummed` knows it is whole."""
    return json.dumps({"sha256": _checksum(content), **content}, indent=1)


def read_checksummed(path: pathlib.Path) -> dict[str, Any] | None:
    """What `with_checksum` made into the text at `path`; None if that is not whole there."""
    try:
        content = read_json(path)
    except InputError:
        return None
    whole = isinstance(content, dict) and "sha256" in content
    return content if whole and content.pop("sha256") == _checksum(content) else None


def write_atomic(path: pathlib.Path, content: bytes | memoryview | str) -> None:
    """`path` holds `content`, all of it, or what it held before."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_writer(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends, and is gone if it fails.

    The folder is made where it is missing. Safe with several writers: the last one
    wins.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
