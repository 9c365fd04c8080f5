"""Annotations say which values a field may have, and what does not fit is named with what is allowed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from annotated_types import Ge, Lt, MinLen

from qdit.checked import Bits, Checked, Count, Share, UpperShare, describe, fits
from qdit.errors import UserError


def test_fits_and_describe():
    assert fits(3, int | None)
    assert fits(None, int | None)
    assert not fits(True, int)
    assert not fits("3", float)
    assert fits([1, 2], list[int])
    assert not fits(["a"], list[int])
    assert describe(int | None) == "a whole number or null"
    assert fits(Path(), Path)
    assert fits(np.int64(3), int)
    assert not fits(float("nan"), float)
    assert not fits(7, Checked | None)
    assert fits({}, Checked)


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (Count, 1, 0, "a whole number of at least 1"),
        (Share | None, None, 1.5, "a number from 0 to 1 or null"),
        (Annotated[float, Ge(0), Lt(1)], 0.5, 1, "a number of at least 0 and below 1"),
        (Bits, 16, 9, "a whole number (2 to 8, or 16 for full precision)"),
        (
            Annotated[list[UpperShare], MinLen(1)],
            (0.9, 1.0),
            [],
            "a list of 1 or more, each a number above 0.5 and at most 1 (such as 0.999)",
        ),
    ],
)
def test_bounds_hold_and_are_said(hint, good, bad, words):
    assert fits(good, hint)
    assert not fits(bad, hint)
    assert not fits("4", hint)
    assert describe(hint) == words


@dataclass(frozen=True, kw_only=True)
class Base(Checked):
    rows: Count = 1


@dataclass(frozen=True, kw_only=True)
class Part(Base):
    share: Share = 0.5
    names: list[str] = field(default_factory=list)


def test_a_part_is_checked_when_it_is_made_with_what_it_inherits():
    assert repr(Part(rows=2)).endswith("Part(rows=2, share=0.5, names=[])")
    with pytest.raises(UserError, match=r"^Part.rows=0; allowed: a whole number of at least 1$"):
        Part(rows=0)
    with pytest.raises(UserError, match=r"2 problems in Part:\n  Part.rows=True.*\n  Part.share=2; allowed"):
        Part(rows=True, share=2)
