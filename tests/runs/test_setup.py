"""What is missing is said before anything is loaded, and all of it at once."""

import pytest

from qdit.api.compose import composed
from qdit.config import resolved
from qdit.errors import UserError
from qdit.eval.preflight import Prepared
from qdit.eval.static_filter import StaticFlickering
from qdit.runs import parts
from qdit.runs.identity import canonical
from qdit.storage.weights import VARIABLE, WEIGHTS


def config(*words):
    return canonical(resolved(composed(*words, "device=cpu")))


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """No weights, no other environment."""
    for name in (VARIABLE, "QDIT_VBENCH_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prompts_networks_and_programs_that_are_missing_are_one_message(nothing):
    with pytest.raises(UserError) as caught:
        parts.plan(config("model=latte", "dataset=vbench", "eval=vbench_viditq8", "num_samples=251"))
    said = str(caught.value)
    assert said.startswith("dataset: VBench_full_info.json does not exist")
    for name in ("dino", "clip_b32", "clip_l14", "laion_head", "raft", "musiq"):
        assert f"{WEIGHTS[name].name} ({WEIGHTS[name].size}" in said
    assert "QDIT_VBENCH_PYTHON" in said
    assert len(said.split("not found")) == 7  # each network once
    assert "eval.motion_smoothness, scene, overall_consistency: VBench's own code" in said


def test_a_data_set_that_is_wrong_alone_is_said_alone(nothing):
    with pytest.raises(UserError, match="^dataset.file=gone.txt: no such file"):
        parts.plan(config("model=pixart_sigma", "dataset=prompts", "dataset.file=gone.txt", "eval=paired"))


def test_metrics_are_asked_about_the_prompts_that_will_be_sampled(nothing, monkeypatch):
    """Each as often as it will be, and no others."""
    asked = []
    monkeypatch.setattr(parts, "prepare", lambda *_, prompts, **__: asked.append(list(prompts)) or Prepared({}, {}))
    (nothing / "two.txt").write_text("a cat\na dog\n")
    words = ("model=latte", "dataset=prompts", "dataset.file=two.txt", "eval=temporal_flickering_static")
    parts.plan(config(*words, "num_samples=5"))
    assert asked.pop() == ["a cat", "a dog", "a cat", "a dog", "a cat"]
    parts.plan(config(*words, "num_samples=1"))
    assert asked.pop() == ["a cat"]
    assert StaticFlickering().unreadable(["a cat", "a dog"] * 25) == []
