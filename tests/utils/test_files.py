"""A file holds all of its new content, or all of its old."""

import os
import pathlib

import pytest

from ummcsgm.utils.atomic_io import atomic_writer, write_atomic


@pytest.mark.parametrize("content", [b"\x00\xff\n", "µm\n"])
def test_the_content_is_there_byte_for_byte_and_the_folder_is_made(tmp_path, content):
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
