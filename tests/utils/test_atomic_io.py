"""A file holds all of its new content or all of its old; hashes and JSON of values."""

import hashlib
import json
import math
import os
import pathlib

import pytest

from ummcsgm.utils.atomic_io import (
    atomic_writer,
    digest,
    json_without_nan,
    read_checksummed,
    sha256_of_file,
    with_checksum,
    write_atomic,
)


@pytest.mark.parametrize("content", [b"\x00\xff\n", "µm\n"])
def test_the_content_is_written_byte_for_byte_and_the_folder_is_made(tmp_path, content):
    path = tmp_path / "a" / "b" / "name.json"
    write_atomic(path, content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == expected
    assert list(tmp_path.rglob("*.*")) == [path]


def test_a_path_given_as_text_is_replaced(tmp_path):
    path = tmp_path / "name"
    for content in ("long first content", "second"):
        write_atomic(str(path), content)
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["name"]


def test_a_write_that_fails_half_way_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "name"
    write_atomic(path, "old")

    with pytest.raises(OSError, match="disk full"), atomic_writer(path) as file:
        file.write(b"ne")
        file.flush()
        assert len(os.listdir(tmp_path)) == 2
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["name"]


def test_the_new_content_comes_by_renaming_a_whole_file(tmp_path, monkeypatch):
    seen = []

    def note(source, target):
        seen.append((pathlib.Path(source).read_text(), pathlib.Path(target)))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", note)
    write_atomic(tmp_path / "name", "all of it")
    assert seen == [("all of it", tmp_path / "name")]


def test_a_digest_depends_on_the_values_and_not_on_the_order_of_keys():
    assert digest({"a": [1, None], "b": "c"}) == digest({"b": "c", "a": (1, None)})
    assert digest([1]) == hashlib.sha256(b"[1]").hexdigest()
    assert len({digest(value) for value in ([1], [1.0], ["1"], [True], {})}) == 5


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_json_has_no_nan_at_any_depth():
    value = {"a": [math.nan, (math.inf, 1.5)], "b": "nan", "c": -math.inf}
    assert json_without_nan(value) == {"a": [None, [None, 1.5]], "b": "nan", "c": None}
    assert json_without_nan(value, str) == {"a": [None, ["inf", 1.5]], "b": "nan", "c": "-inf"}
    json.dumps(json_without_nan(value, str), allow_nan=False)


def test_a_damaged_file_with_a_checksum_reads_as_none(tmp_path):
    path, content = tmp_path / "index.json", {"names": ["a", "b"]}
    text = with_checksum(content)
    for damaged in (text[:-9], text.replace('"b"', '"c"'), "[]", "{}"):
        path.write_text(damaged)
        assert read_checksummed(path) is None
    path.write_text(text)
    assert read_checksummed(path) == content
    assert read_checksummed(tmp_path / "missing.json") is None
