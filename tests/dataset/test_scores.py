"""Exact scores of the embedded text models: true samples score 1."""

from itertools import islice

import pytest
import torch

from qdit.dataset import scores
from qdit.dataset.captions import base_emoji, caption
from qdit.dataset.emoji_prompts import motion_pairs
from qdit.dataset.motion import PHRASES, POSES, render
from qdit.dataset.scores import EmojiMatch, MotionError, MotionMatch, SubjectMatch, phrase_of
from qdit.errors import UserError
from qdit.eval.frames import survey
from qdit.eval.pieces import cut


class Clips:
    """Clips, or features, with prompts."""

    clusters = None

    def __init__(self, prompts, clips=None, pooled=None):
        self.n, self.prompts, self.clips, self.pooled = len(prompts), prompts, clips, pooled

    def pieces(self, extractors=()):
        yield from cut([self.clips])

    def missing(self, extractors):
        return []

    def features(self, extractor):
        return {"pooled": self.pooled}


@pytest.fixture(scope="module")
def clips():
    """The first twelve prompts, one a motion, as true clips."""
    at, motion = torch.tensor([*islice(motion_pairs(held=False), 12)]).unbind(1)
    images, names = base_emoji()
    prompts = [caption(names[i], PHRASES[m]) for i, m in zip(at.tolist(), motion.tolist(), strict=True)]
    shown = render(images[at], POSES[motion])
    return prompts, (shown * 255).round().to(torch.uint8)


def test_true_clips_show_their_motion_and_shuffled_ones_do_not(clips):
    prompts, shown = clips
    true = Clips(prompts, shown)
    assert sorted(map(phrase_of, prompts)) == list(range(12))
    right = MotionMatch().each(true, true)
    still = [p.endswith("stands still") for p in prompts]
    turning = torch.tensor([" turns " in p for p in prompts])
    assert right[~turning].tolist() == [1] * int((~turning).sum())  # a symmetric emoji may hide that it turns
    assert MotionError().compute(true, true).value < -30
    shuffled = Clips(prompts, shown[:, [3, 0, 6, 2, 7, 1, 5, 4]])
    result = MotionMatch().compute(shuffled, true)
    assert result.value < 0.5
    assert result.delta == pytest.approx(result.value - float(right.mean()))
    frozen = Clips(prompts, shown[:, :1].expand(-1, 8, -1, -1, -1).contiguous())
    assert MotionMatch().each(frozen, frozen).tolist() == [float(s) for s in still]


def test_true_clips_show_their_emoji_whatever_moves(clips):
    prompts, shown = clips
    true = Clips(prompts, shown)
    assert SubjectMatch(top=5).compute(true, true).value >= 10 / 12  # two symbols are not; of 120 clips .97 are
    assert SubjectMatch().compute(true, true).value >= 0.5
    swapped = Clips([f"{'rocket'} {PHRASES[phrase_of(prompt) or 0]}" for prompt in prompts], shown)
    assert SubjectMatch(top=5).compute(swapped, swapped).value <= 1 / 12
    with pytest.raises(UserError, match="the prompt 'a boat grows' names no emoji; use dataset=emoji_motions"):
        SubjectMatch().compute(s := Clips(["a boat grows"] * 12, shown), s)


def test_what_cannot_be_judged_is_said(clips):
    prompts, shown = clips
    with pytest.raises(UserError, match="'a red apple' names no motion; use dataset=emoji_motions"):
        MotionMatch().compute(s := Clips(["a red apple"] * 12, shown), s)
    with pytest.raises(UserError, match="clips of 8 frames of 32×32 px, these are 7×3×32×32"):
        MotionMatch().compute(s := Clips(prompts, shown[:, :7]), s)
    assert MotionError().preflight(12, None, 64) == [
        "motions are read off clips of 8 frames of 32 px, these have 64 px"
    ]
    assert EmojiMatch(extractor="lite0").unreadable(["rocket", "a red apple"]) == [
        "the prompt 'a red apple' is no emoji's name; use dataset=emoji_prompts"
    ]


def test_the_emoji_themselves_match_their_names():
    from qdit.eval.extractor import make_extractor

    images, names = base_emoji()
    chosen = [names.index(name) for name in ("rocket", "cat face", "umbrella", "guitar")]
    pixels = (images[chosen] * 255).round().to(torch.uint8)
    pooled = make_extractor("lite0")(pixels)["pooled"]
    prompts = [names[i] for i in chosen]
    true, swapped = Clips(prompts, pooled=pooled), Clips(prompts[::-1], pooled=pooled)
    assert EmojiMatch(extractor="lite0").each(true, true).tolist() == [1, 1, 1, 1]
    assert EmojiMatch(extractor="lite0", top=5).compute(swapped, true).delta == -1


def test_two_scores_of_the_same_errors_compute_them_once(monkeypatch):
    seen = []
    monkeypatch.setattr(scores, "phrase_errors", lambda x: seen.append(len(x)) or torch.rand(len(x), 12))
    clips = Clips(["rocket moves up", "rocket grows"], torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8))
    survey([MotionMatch(), MotionError()], clips, clips)
    assert sum(seen) == 2
