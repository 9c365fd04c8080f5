"""VBench's suite is the user's copy, and is recognised by its counts."""

import json

import pytest
from helpers.vbench_suite import write_suite

from qdit.dataset.vbench import DISTINCT, VBenchPrompts, read_suite
from qdit.errors import UserError


@pytest.fixture
def suite(tmp_path):
    return write_suite(tmp_path)


def prompts(file, *dimensions) -> VBenchPrompts:
    return VBenchPrompts(name="v", file=str(file), dimensions=list(dimensions), image_size=None, reference="v")


def test_the_prompts_of_some_dimensions(suite):
    assert len(prompts(suite).captions) == DISTINCT
    assert len(prompts(suite, "dynamic_degree").captions) == 72
    eight = prompts(suite, "subject_consistency", "scene", "overall_consistency")
    assert len(eight.captions) == 72 + 86 + 93
    assert eight.labels([0, 251, 252], 0).tolist() == [0, 0, 1]


def test_a_prompt_knows_all_its_dimensions(suite):
    """Two prompts stand in two entries; a choice of dimensions does not hide the others."""
    texts = prompts(suite, "subject_consistency").class_names()
    assert texts[5].dimensions == ("subject_consistency", "motion_smoothness", "dynamic_degree")
    entries = json.loads(suite.read_text())
    text = entries[-1]["prompt_en"]
    both = next(found for found in prompts(suite).texts if found == text)
    own = [entry["dimension"] for entry in entries if entry["prompt_en"] == text]
    assert len(own) == 2
    assert set(both.dimensions) == {*own[0], *own[1]}


def test_other_files_are_refused(suite, tmp_path):
    with pytest.raises(UserError, match=r"dataset.dimensions: beauty is none of"):
        prompts(suite, "beauty")
    short = json.loads(suite.read_text())[:-1]
    suite.write_text(json.dumps(short))
    with pytest.raises(UserError, match=r"has 945 entries of 944 prompts, VBench has 946 of 944 \(\w+ \d+ for \d+\)"):
        read_suite(suite)
    suite.write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no list of VBench's entries"):
        read_suite(suite)
    with pytest.raises(UserError, match="does not exist; get VBench_full_info.json from"):
        read_suite(tmp_path / "nothing.json")
