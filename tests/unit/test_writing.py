"""A file is replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_maestro.config.writing import write_atomically


def test_text_and_bytes_take_the_place_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "é\n")
    assert file.read_bytes() == b"\xc3\xa9\n"
    write_atomically(file, (line for line in (b"one\n", b"two\n")))
    assert file.read_bytes() == b"one\ntwo\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def rows():  # type: ignore[no-untyped-def]
        yield b"new"
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        write_atomically(file, rows())
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
