"""VBench's static filter: golden values of its rule, the chosen clips, and the flow that it reads."""

import pytest
import torch

from qdit.errors import UserError
from qdit.eval.extractor import make_extractor, raft
from qdit.eval.static_filter import StaticFlickering, allowed, first_of_each, limit, still
from qdit.eval.vbench.suite import SuitePrompt
from qdit.eval.video import TemporalFlickering
from qdit.storage.weights import WEIGHTS, weight_file


@pytest.mark.parametrize(
    ("steps", "ends", "static"),
    [
        ((4, 4, 0, 0, 0, 0, 0), (1, 1), True),
        ((4, 4, 4, 0), (1, 1), False),
        ((0, 0, 0), (13, 13), False),
        ((0, 0, 0), (12, 12), True),
        ((0, 0, 0), (0, 13), False),  # either direction counts
        ((3, 3, 3, 3), (0, 0), True),  # not above the threshold
    ],
)
def test_golden_values_of_the_rule(steps, ends, static):
    """VBench dossier, §4: threshold 3, two steps may move."""
    found = still(torch.tensor([steps]).float(), torch.tensor([ends]).float(), 3.0, 2)
    assert found.tolist() == [static]


def test_thresholds_are_half_of_the_dynamic_degrees():
    assert [limit(side) for side in (32, 256, 512, 480, 720)] == [0.375, 3, 6, 5.625, 8.4375]
    assert [allowed(frames) for frames in (2, 3, 4, 5, 12, 16, 20, 49)] == [0, 0, 0, 1, 2, 2, 2, 6]


class Clips:
    """Clips of given frames, whose flow is given."""

    def __init__(self, images, steps, ends, prompts=(), clusters=None):
        self.n, self.prompts, self.clusters, self._images = len(images), prompts, clusters, images
        self._features = {"top2": steps, "ends": ends, "side": torch.full((self.n, 1), 256.0)}

    def pieces(self, extractors=()):
        from qdit.eval.pieces import cut

        yield from cut([self._images])

    def missing(self, extractors):
        return []

    def features(self, extractor):
        assert extractor == "raft_static"
        return self._features


def clips(moving: list[bool], prompts, seed: int = 0) -> Clips:
    n = len(moving)
    images = torch.randint(0, 256, (n, 5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    steps = torch.where(torch.tensor(moving)[:, None], 9.0, 0.5).expand(n, 4)
    return Clips(images, steps, torch.zeros(n, 2), prompts, prompts or None)


def test_the_first_static_clips_of_each_prompt_are_judged():
    own = clips([True, False, False, False, False, True], ["a"] * 4 + ["b"] * 2)
    every = TemporalFlickering().each(own, own)
    result = StaticFlickering(keep=2).compute(own, own)
    assert result.value == pytest.approx(float((every[[1, 2]].mean() + every[4]) / 2))  # prompts count alike
    assert (result.n, result.clusters) == (3, 2)
    assert result.each.isnan().tolist() == [True, False, False, True, False, True]
    assert torch.equal(result.each[[1, 2, 4]], every[[1, 2, 4]])
    alone = StaticFlickering().compute(plain := clips([False, True], ()), plain)
    assert (alone.n, alone.clusters) == (1, None)


def test_a_difference_is_over_the_clips_that_both_keep():
    own, full = clips([False, False, True], ["a", "a", "b"]), clips([True, False, False], ["a", "a", "b"], seed=1)
    result = StaticFlickering().compute(own, full)
    change = TemporalFlickering().each(own, own)[1] - TemporalFlickering().each(full, full)[1]
    assert result.delta == pytest.approx(float(change))
    assert result.n == 2


def test_it_says_what_cannot_be_filtered():
    metric, own, other = StaticFlickering(), SuitePrompt("a", ["temporal_flickering"]), SuitePrompt("b", ["scene"])
    assert metric.unreadable([own, own, other]) == []
    assert "one has 1: VBench samples 25 of each" in metric.unreadable([own, other])[0]
    assert metric.unreadable([other, other]) == [
        "none of these prompts is one of temporal_flickering; name it in dataset.dimensions"
    ]
    assert raft.too_small(64) in metric.preflight(4, None, 64)
    moving = clips([True, True], ["a", "a"])
    with pytest.raises(UserError, match="temporal_flickering judges none of the 2 samples"):
        metric.compute(moving, moving)


def test_of_each_prompt_the_first_are_kept_as_a_loop_does_it():
    g = torch.Generator().manual_seed(0)
    kept, prompts = torch.rand(60, generator=g) < 0.6, [f"p{int(x)}" for x in torch.randint(0, 7, (60,), generator=g)]
    seen, wanted = dict.fromkeys(prompts, 0), []
    for keep, prompt in zip(kept.tolist(), prompts, strict=True):
        seen[prompt] += keep
        wanted.append(keep and seen[prompt] <= 3)
    assert first_of_each(kept, prompts, 3).tolist() == wanted


def test_flow_goes_between_all_neighbours_and_both_ways_between_the_ends(monkeypatch):
    """The flow is as long as the difference of the frames' levels: 1 between neighbours, 11 and -11 at the ends."""

    def flow(self, first, second):
        return (second.float() - first.float())[:, :2] / 2**0.5

    monkeypatch.setattr(raft.Flow, "flow", flow)
    levels = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [5] * 12], dtype=torch.uint8)
    found = raft.Ends(torch.nn.Identity())(levels[:, :, None, None, None].expand(2, 12, 3, 128, 136))
    torch.testing.assert_close(found["top2"], torch.tensor([[1.0] * 11, [0.0] * 11]))
    torch.testing.assert_close(found["ends"], torch.tensor([[11.0, 11.0], [0.0, 0.0]]))
    assert found["side"].tolist() == [[128.0], [128.0]]
    assert weight_file("raft_static") is WEIGHTS["raft"]
    with pytest.raises(UserError, match="two frames or more"):
        make_extractor("raft_static")(torch.zeros(1, 1, 3, 128, 128, dtype=torch.uint8))
