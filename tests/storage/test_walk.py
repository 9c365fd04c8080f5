"""Folders are read through links, and what is read is what identity is made of."""

import os

import pytest

from qdit.errors import UserError
from qdit.eval.image_files import Images
from qdit.runs.identity import weights
from qdit.storage.walk import files_below


def folder(path, **files):
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    return path


def identity(path) -> str:
    return weights({"model": {"path": str(path)}})


def test_without_links_the_list_is_that_of_rglob(tmp_path):
    for place in ("", "b", "b/.hidden", "a.json.d"):
        folder(tmp_path / "model" / place / "x", one="1", two="2")
    found = files_below(tmp_path / "model")
    assert found == sorted(p for p in (tmp_path / "model").rglob("*") if p.is_file())
    assert len(found) == 8


def test_another_folder_behind_a_link_is_another_model(tmp_path):
    model = folder(tmp_path / "model", index="{}")
    (model / "transformer").symlink_to(folder(tmp_path / "a", weights="1"))
    first = identity(model)
    (model / "transformer").unlink()
    (model / "transformer").symlink_to(folder(tmp_path / "b", weights="2"))
    second = identity(model)
    (model / "transformer").unlink()
    folder(model / "transformer", weights="2")
    assert first != second == identity(model)  # a link and a copy are the same model


def test_cycles_end_and_links_to_nothing_are_no_files(tmp_path):
    model = folder(tmp_path / "model", index="{}")
    (model / "self").symlink_to(model)
    other = folder(tmp_path / "other", x="1")
    (other / "back").symlink_to(model)
    (model / "other").symlink_to(other)
    (model / "gone.json").symlink_to(tmp_path / "nowhere")
    (model / "loop").symlink_to(model / "loop")
    assert files_below(model) == [model / "index.json", model / "other" / "x.json"]


def test_images_behind_a_link_are_images(tmp_path):
    photos = folder(tmp_path / "photos")
    (photos / "of_2025").symlink_to(folder(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "a.PNG").write_bytes(b"")
    assert len(Images(photos)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    folder(tmp_path / "model" / "closed").chmod(0)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\)"):
        files_below(tmp_path / "model")
