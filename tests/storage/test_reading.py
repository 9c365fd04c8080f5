"""One reader of JSON and of YAML: what is wrong is said in one sentence."""

import json
import os

import pytest

from qdit.errors import UserError
from qdit.storage.reading import DEEPEST, parse_json, read_json, read_text, read_yaml


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no valid JSON"),
        ('{"a": 1', "no valid JSON"),
        ("[1, 2]", "it is a list, where names"),
        ('"text"', "it is text, where"),
        ("null", "it is empty"),
        ("7", "it is a single value"),
        ('{"a": NaN}', "the number NaN is not finite"),
        ('{"a": [-Infinity]}', "the number -Infinity is not finite"),
        ('{"a": 1e999}', "the number inf is not finite"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ('{"a": 36893488147419103232}', "more than 64 bits"),
        (f'{{"a": {"9" * 5000}}}', "no valid JSON"),
        ('{"a": "\\ud800"}', "no valid JSON"),
        (nested(DEEPEST + 1), f"more than {DEEPEST} levels"),
        (nested(200_000), f"more than {DEEPEST} levels"),
        ('{"a": ' + "[" * 200_000, f"more than {DEEPEST} levels"),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_no_writer_writes_is_refused(text, found, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged: .*; copy it again$") as caught:
        read_json(file, "copy it again")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_as_it_is_written_is_read(tmp_path):
    value = {"a": [1, -2.5e-300, None, True, "ü", {}], "": {"b": [[]]}, "seed": 2**63}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json", "") == value
    assert parse_json(nested(DEEPEST - 1), "it", "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [1", "no valid YAML"),
        ("- 1", "it is a list"),
        ("", "it is empty"),
        ("a: .inf", "the number inf is not finite"),
        ("a: 1\na: 2", "a key is there twice"),
        ("a: &x [1]\nb: *x", "references"),
        ("a: !!python/object/apply:os.system [ls]", "no valid YAML"),
        ("a: 2026-01-01", "a value is a date"),
        ("? [1, 2]\n: 3", "no valid YAML"),
        ("a: " + "[" * 5000, f"more than {DEEPEST} levels"),
        ("a: \x00", "no valid YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_is_plain_values(text, found, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="is damaged: ") as caught:
        read_yaml(file, "give another")
    assert found in str(caught.value)


def test_what_is_no_file_is_said_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes("ü".encode("latin-1"))
    for name, found in {
        "none": "does not exist",
        ".": "is a folder",
        "pipe": "is no regular file",
        "a\0b": "cannot be read",
        "latin": "is no text (UTF-8), from byte 0 on",
    }.items():
        with pytest.raises(UserError) as caught:
            read_text(tmp_path / name, "give a file")
        assert found in str(caught.value)
    with pytest.raises(UserError, match="it has 1 bytes, and 0 are allowed"):
        read_text(tmp_path / "latin", "", largest=0)
