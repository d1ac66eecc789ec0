"""Files that are never half-written, JSON, and SHA-256 of values and of files."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from ummcsgm.types import InputError

# The errors of numpy.load for an archive that is damaged or cut short.
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def digest(value: Any) -> str:
    """The SHA-256 of `value` as JSON with sorted keys, in 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_bytes(chunks: Iterable[bytes]) -> str:
    """The SHA-256 of several pieces of bytes, one after the other."""
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def sha256_of_file(path: pathlib.Path) -> str:
    """The SHA-256 of a file's bytes, in 64 hexadecimal digits."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_without_nan(value: Any, infinity: Callable[[float], Any] = lambda number: None) -> Any:
    """Returns `value` with None for NaN and infinity(number) for infinite numbers, which
    JSON does not have, at any depth of dicts and lists."""
    if isinstance(value, dict):
        return {key: json_without_nan(inner, infinity) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_without_nan(inner, infinity) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else infinity(value)
    return value


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of the JSON file at `path`. Raises InputError if it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it.") from None


def with_checksum(content: dict[str, Any]) -> str:
    """Returns `content` as JSON text with a checksum, for `read_checksummed`."""
    return json.dumps({"sha256": digest(content), **content}, indent=1)


def read_checksummed(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the content that `with_checksum` wrote to `path`; None if it is damaged."""
    try:
        content = read_json(path)
    except InputError:
        return None
    has_checksum = isinstance(content, dict) and "sha256" in content
    return content if has_checksum and content.pop("sha256") == digest(content) else None


def write_atomic(path: pathlib.Path, content: bytes | memoryview | str) -> None:
    """Writes `content` to `path`. If it fails, `path` keeps its old content."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_writer(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yields a temporary file that replaces `path` when the block ends without an error.

    Missing folders are made. With several writers the last one wins.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
