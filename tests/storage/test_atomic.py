"""Files are whole on the disk, and what killed processes left of them goes."""

import os

import pytest

from qdit.errors import UserError
from qdit.storage.atomic import ABANDONED, atomic_write


def test_abandoned_temporary_files_are_swept_and_no_others(tmp_path):
    old, fresh, other = (tmp_path / n for n in (".a.json.abcd_12x.tmp", ".b.json.abcd_12y.tmp", ".note.tmp"))
    for file in (old, fresh, other):
        file.write_text("")
    past = fresh.stat().st_mtime - ABANDONED - 60
    for file in (old, other):
        os.utime(file, (past, past))
    atomic_write(tmp_path / "c.json", "{}")
    assert sorted(f.name for f in tmp_path.iterdir()) == [".b.json.abcd_12y.tmp", ".note.tmp", "c.json"]


def test_the_folder_is_synced_after_a_rename(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        "qdit.storage.atomic.sync_folder", lambda folder: done.append((folder, (folder / "a").exists()))
    )
    atomic_write(tmp_path / "a", b"")
    assert done == [(tmp_path, True)]


def test_files_are_shared_as_the_user_shares_files(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_one_message_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot write .*File exists; choose another folder"):
        atomic_write(tmp_path / "file" / "a", b"")
    with pytest.raises(UserError, match="cannot write"):
        atomic_write(tmp_path / "full" / ("a" * 300), b"")
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["file"]
