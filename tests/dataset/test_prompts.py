"""Prompts: files of three kinds, numbers of samples' prompts, and every complaint."""

from types import SimpleNamespace

import pytest
from helpers.prompts import prompts

from qdit.dataset.prompts import read_captions, unshown
from qdit.errors import UserError
from qdit.seeding import CALIBRATION


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\n\n  a dog \n"),
        ("a.jsonl", '{"id": "x", "prompt": "a cat"}\n{"caption": "a dog", "seed": 3}\n'),
        ("a.csv", "id,prompt\nx,a cat\n,a dog\n"),
    ],
)
def test_three_kinds_of_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_captions(tmp_path / name, "dataset.file")
    assert [caption.text for caption in found] == ["a cat", "a dog"]
    assert [caption.id for caption in found] == ["0" if name == "a.txt" else "x", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no captions; write one a line"),
        ("a.txt", b"a \xff cat", "is not UTF-8 .*save it as UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n[1]', "line 2: no JSON object"),
        ("a.jsonl", b'{"prompt": 7}', "line 1: no JSON object"),
        ("a.csv", b"id,text\n1,a", "no column named prompt or caption"),
        ("a.txt", b"x" * 5000, "a caption of 5000 characters; allowed"),
    ],
)
def test_complaints_name_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / name, "dataset.file")


def test_a_missing_file_names_the_lists_that_are_shipped():
    with pytest.raises(UserError, match=r"dataset.file=nothing.txt: no such file; .*one of: plain"):
        prompts(file="nothing.txt")


def test_a_sample_has_its_prompt_and_calibration_its_own(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("four\nfive\n")
    plain = prompts(file=str(tmp_path / "a.txt"))
    assert plain.labels([0, 1, 2, 3, CALIBRATION + 1], 0).tolist() == [0, 1, 2, 0, (CALIBRATION + 1) % 3]
    apart = prompts(file=str(tmp_path / "a.txt"), calibration_file=str(tmp_path / "b.txt"), negative="blurry")
    assert apart.labels([4, CALIBRATION, CALIBRATION + 1], 0).tolist() == [1, 3, 4]
    assert apart.texts == ["one", "two", "three", "four", "five", "blurry"]
    assert "negative=" in apart.protocol()
    assert plain.protocol() != apart.protocol()


def test_the_shipped_list():
    assert len(prompts(file="plain").captions) == 32


def test_each_prompt_has_as_many_samples_and_trajectories_of_calibration():
    shipped = prompts(file="plain")
    for first in (0, CALIBRATION):
        assert shipped.labels(range(first, first + 320), 0).bincount().tolist() == [10] * 32


def test_references_of_another_size_are_refused_where_the_model_s_is_known(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    dataset = prompts(file=str(tmp_path / "prompts.txt"), image_size=32)
    assert "has references of 32 px, the model makes 64" in dataset.check(SimpleNamespace(image_size=64))[0]  # pyright: ignore[reportArgumentType]
    assert dataset.check(SimpleNamespace(image_size=32)) == []  # pyright: ignore[reportArgumentType]
    assert dataset.check(SimpleNamespace(image_size=None)) == []  # pyright: ignore[reportArgumentType]
    assert prompts(file=str(tmp_path / "prompts.txt")).check(SimpleNamespace()) == []  # pyright: ignore[reportArgumentType]


def test_a_negative_prompt_that_no_sample_is_shown_is_one_sentence(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    about = {"file": str(tmp_path / "prompts.txt")}
    found = unshown(prompts(**about, negative="blurry"), "there is no guidance; leave it empty")
    assert found == ["dataset.negative='blurry' has no effect: there is no guidance; leave it empty"]
    assert unshown(prompts(**about, negative="blurry"), None) == unshown(prompts(**about), "no guidance") == []
