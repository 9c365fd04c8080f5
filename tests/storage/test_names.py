"""Names from configs, records and checkpoints stay in their place, in paths and on terminals."""

import logging

import pytest

from qdit.errors import UserError, visible
from qdit.storage import names
from qdit.storage.names import component, fits, fitting

OUTSIDE = [
    "",
    " ",
    ".",
    "..",
    "../../x",
    "/etc/x",
    "a/b",
    "a\\b",
    ".hidden",
    "a\0b",
    "a\x1b[2J",
    "a\nb",
    "\u202eb",
    "é" * 150,
]
INSIDE = ["table1", "two words", "v[1]", "2026_11_28", "fid_lite0@1a2b3c4d", "50%", "é", "a..b", "-x"]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 7, 1.5, True, {}, ["a"]])
def test_what_is_no_part_of_a_path_is_refused(name):
    assert not fits(name)
    with pytest.raises(UserError, match=r"study=.*(a name of one folder is needed|a name is text)"):
        component(name, "study")


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_one_is_kept(name):
    assert component(name, "study") == fitting(name) == name


def test_any_text_can_be_fitted_and_none_becomes_another():
    made = [fitting(name) for name in OUTSIDE]
    assert all(map(fits, made))
    assert len({*made}) == len(OUTSIDE)


def test_messages_and_log_lines_hide_nothing_and_move_no_cursor():
    text = "a\x1b[2Jb\x9bc\u202ed\ud800\r\n\té"
    assert visible(text) == "a\\x1b[2Jb\\x9bc\\u202ed\\ud800\\r\n\té"
    assert str(UserError(text, "x")) == visible(text) + "\nx"
    record = logging.makeLogRecord({"msg": "%s", "args": ("\x1b]0;title\x07",)})
    assert names.Formatter("%(message)s").format(record) == "\\x1b]0;title\\x07"
