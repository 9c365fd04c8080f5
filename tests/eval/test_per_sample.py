"""Errors clustered by prompt."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import t as student

from qdit.errors import UserError
from qdit.eval.flow import DynamicDegree
from qdit.eval.per_sample import PerSample, mean_of
from qdit.eval.text import Aesthetic, ImagingQuality
from qdit.eval.vbench.suite import SuitePrompt
from qdit.eval.video import FrameConsistency


def test_one_sample_a_prompt_is_the_plain_error():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    assert mean_of(values, [str(i) for i in range(20)]) == mean_of(values)
    assert mean_of(values).stderr == pytest.approx(float(values.std()) / 20**0.5)


def test_prompts_count_once_however_many_samples_they_have():
    values = torch.tensor([0.0, 0.0, 0.0, 8.0, 4.0])
    found = mean_of(values, ["a", "a", "a", "b", "c"])
    assert found == (4.0, pytest.approx(4 / 3**0.5), 3)
    assert mean_of(values, ["a"] * 5) == (pytest.approx(2.4), None, 1)


def test_intervals_cover_where_plain_ones_do_not():
    """1,000 repeats of 50 prompts with 5 samples each, of intraclass correlation 1/2."""
    g = torch.Generator().manual_seed(1)
    prompts = [str(i // 5) for i in range(250)]
    inside, plain = 0, 0
    for _ in range(1000):
        values = (torch.randn(50, 1, generator=g) + torch.randn(50, 5, generator=g)).flatten().double()
        own, naive = mean_of(values, prompts), mean_of(values)
        assert own.stderr
        assert naive.stderr
        inside += abs(own.value) < student.ppf(0.975, 49) * own.stderr
        plain += abs(naive.value) < student.ppf(0.975, 249) * naive.stderr
    assert 930 <= inside <= 970
    assert plain < 850


class Drawn:
    """Samples of prompts, whose value is their level."""

    def __init__(self, levels, prompts):
        self.n, self.prompts, self.clusters, self.levels = len(levels), prompts, prompts, levels


@dataclass(frozen=True, kw_only=True)
class Scene(PerSample):
    """A dimension of VBench."""

    higher_is_better = True

    def judges(self):
        return "scene"

    def each(self, samples, full_precision):
        return torch.tensor(samples.levels).double()


def test_of_vbenchs_suite_a_dimension_judges_its_own_prompts():
    barn, lake, cat = (
        SuitePrompt("barn", ["scene"]),
        SuitePrompt("lake", ["color", "scene"]),
        SuitePrompt("c", ["color"]),
    )
    own = Drawn([1.0, 2.0, 9.0, 3.0], [barn, lake, cat, lake])
    full = Drawn([0.0, 0.0, 9.0, 1.0], own.prompts)
    found = Scene().compute(own, full)
    assert (found.value, found.n, found.clusters) == (1.75, 3, 2)
    assert found.delta == (1 + (2 + 2) / 2) / 2
    assert found.each.isnan().tolist() == [False, False, True, False]
    assert Scene().compute(plain := Drawn([1.0, 3.0], ["barn", "c"]), plain).value == 2  # one's own prompts: all
    assert Scene().unreadable([barn, cat]) == Scene().unreadable(["c"]) == Scene().unreadable([]) == []
    assert Scene().unreadable([cat]) == ["none of these prompts is one of scene; name it in dataset.dimensions"]
    with pytest.raises(UserError, match="scene judges none of the 1 samples"):
        Scene().compute(other := Drawn([1.0], [cat]), other)


def test_vbenchs_dimensions_in_memory_know_their_names():
    assert FrameConsistency(extractor="dino").judges() == "subject_consistency"
    assert FrameConsistency(extractor="clip_b32_vbench").judges() == "background_consistency"
    assert FrameConsistency(extractor="lite0").judges() is None
    made = [DynamicDegree(extractor="raft"), Aesthetic(extractor="clip_l14_vbench"), ImagingQuality(extractor="musiq")]
    assert [metric.judges() for metric in made] == ["dynamic_degree", "aesthetic_quality", "imaging_quality"]
