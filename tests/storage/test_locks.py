"""What processes share is made once: two at the same time, a killed one, and the same one twice."""

import errno
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from helpers.lockers import hold, make_once, sample

from qdit.errors import UserError
from qdit.storage import locks
from qdit.storage.locks import Busy, exclusive, once

SPAWN = multiprocessing.get_context("spawn")


def marks(folder: Path, what: str) -> int:
    return len(list(folder.glob(f"{what}-*.mark")))


@pytest.mark.parametrize("work", [make_once, sample])
def test_two_processes_make_everything_once(work, tmp_path):
    ready = SPAWN.Barrier(2)
    process = SPAWN.Process(target=work, args=(tmp_path, ready))
    process.start()
    work(tmp_path, ready)  # the other process is this one
    process.join(120)
    assert process.exitcode == 0
    expected = (
        ["once"] if work is make_once else [f"{kind}{n}" for kind in ("latents", "features") for n in (0, 2, 4, 6)]
    )
    assert [marks(tmp_path, what) for what in expected] == [1] * len(expected)


def test_a_killed_process_holds_nothing(tmp_path):
    taken = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, taken))
    process.start()
    assert taken.wait(120)
    with pytest.raises(Busy, match="taken"), exclusive(tmp_path / ".lock", busy="it is taken"):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with exclusive(tmp_path / ".lock", busy="it is taken"):
        pass


def test_who_holds_a_lock_waits_for_itself_no_longer_than_it_should(tmp_path):
    with exclusive(tmp_path / ".lock"):
        with exclusive(tmp_path / ".lock"):
            pass
        with pytest.raises(Busy, match="taken"), exclusive(tmp_path / ".lock", busy="taken"):
            pass  # the inner block gave nothing back


def test_a_failure_frees_the_lock_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / "data", lambda: 1 // 0)
    assert not (tmp_path / "data").exists()
    with exclusive(tmp_path / ".data.lock", busy="still held"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), exclusive(tmp_path / "file" / ".lock"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_once(code, tmp_path, monkeypatch, caplog):
    def refuse(descriptor, blocking=True):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    monkeypatch.setattr(locks, "_unlocked", set())
    with caplog.at_level(logging.WARNING, "qdit"):
        for name in ("one", "two"):
            with exclusive(tmp_path / name / ".lock", busy="taken"):
                pass
    assert len(caplog.records) == 1
    assert os.strerror(code) in caplog.text


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "folder", "pipe"])
def test_what_stands_in_the_place_of_a_lock_is_neither_followed_nor_emptied(kind, tmp_path):
    file, treasure = tmp_path / "x" / ".lock", tmp_path / "treasure"
    file.parent.mkdir()
    if kind != "dangling":
        treasure.write_text("gold")
    {
        "link": lambda: file.symlink_to(treasure),
        "dangling": lambda: file.symlink_to(treasure),
        "hard link": lambda: file.hardlink_to(treasure),
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
    }[kind]()
    if kind == "hard link":  # is a file as any other
        with exclusive(file):
            pass
    else:
        with pytest.raises(UserError, match="has to be|cannot write"), exclusive(file):
            pass
    assert treasure.exists() == (kind != "dangling")
    assert not treasure.exists() or treasure.read_text() == "gold"
