"""Captions of named samples: by name where a file has ids, else in the order of the names."""

import pytest

from qdit.cli.captions import captions_of
from qdit.errors import UserError


@pytest.fixture
def given(tmp_path):
    def make(names, text: str, suffix: str = ".txt") -> list[str]:
        (tmp_path / f"captions{suffix}").write_text(text)
        return captions_of(tmp_path / f"captions{suffix}", names)

    return make


def test_lines_are_in_the_order_of_the_names(given):
    assert given(["1", "2"], "a cat\na dog\n") == ["a cat", "a dog"]  # and not by number, from 0 on
    assert given(["b-0", "b-1"], '{"prompt": "a cat"}\n{"prompt": "a dog"}', ".jsonl") == ["a cat", "a dog"]
    with pytest.raises(UserError, match="has 1 captions without ids for 2 samples"):
        given(["0", "1"], "a cat\n")
    with pytest.raises(UserError, match="is in doubt: 10 stands before 2 by its letters"):
        given(["1", "10", "2"], "a\nb\nc\n")
    assert given(["01", "02", "10"], "a\nb\nc\n") == ["a", "b", "c"]


def test_ids_are_names_or_what_stands_before_a_number(given):
    rows = "id,prompt\n2,two\n10,ten\nred,a red one\nred-cat,a red cat\n"
    assert given(["10", "2"], rows, ".csv") == ["ten", "two"]
    assert given(["red-0", "red-1", "red-cat", "red-cat-12"], rows, ".csv") == ["a red one"] * 2 + ["a red cat"] * 2
    with pytest.raises(UserError, match=r"has 4 captions and none for red-dog \(1 of 2 samples\)"):
        given(["red-0", "red-dog"], rows, ".csv")
    with pytest.raises(UserError, match="has two captions for a; take one away"):
        given(["a"], "id,prompt\na,one\na,two\n", ".csv")
    with pytest.raises(UserError, match="none for the caption 'two'; give all an id, or none"):
        given(["a"], "id,prompt\na,one\n,two\n", ".csv")
