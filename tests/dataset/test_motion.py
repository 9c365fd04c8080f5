"""Clips of known motion, and the motion read off them."""

import pytest
import torch

from qdit.dataset.captions import HELD_OUT, WORDS, base_emoji, caption, held_out
from qdit.dataset.motion import FRAMES, PHRASES, POSES, phrase_errors, read_motion, render, subject, undo

PROBES = slice(0, 1911, 160)
# Mean of the clip of emoji 0, and of its first frame, in [0, 1].
GOLDEN = {
    "stands still": (0.89516, 0.89516),
    "moves left": (0.895169, 0.89516),
    "moves right": (0.895169, 0.89516),
    "moves up": (0.895093, 0.89516),
    "moves down": (0.895093, 0.89516),
    "grows": (0.887897, 0.962298),
    "shrinks": (0.887897, 0.794307),
    "turns left": (0.895113, 0.89516),
    "turns right": (0.895113, 0.89516),
    "fades in": (0.939717, 0.984274),
    "fades out": (0.939717, 0.89516),
    "bounces": (0.895093, 0.89516),
}


@pytest.fixture(scope="module")
def emoji():
    return base_emoji()[0][PROBES]


def clips_of(emoji, phrase):
    return render(emoji, POSES[PHRASES.index(phrase)].expand(len(emoji), -1, -1))


@pytest.mark.parametrize("phrase", PHRASES)
def test_render_is_what_it_was(phrase):
    clip = clips_of(base_emoji()[0][:1], phrase)
    assert clip.shape == (1, FRAMES, 3, 32, 32)
    assert (clip.mean().item(), clip[0, 0].mean().item()) == pytest.approx(GOLDEN[phrase], abs=1e-5)


@pytest.mark.parametrize("phrase", PHRASES)
def test_the_motion_of_a_true_clip_is_read(emoji, phrase):
    assert [PHRASES[i] for i in read_motion(clips_of(emoji, phrase))] == [phrase] * len(emoji)


def test_shuffled_frames_are_read_worse(emoji):
    emoji = emoji[:4]
    clips = torch.cat([clips_of(emoji, phrase) for phrase in PHRASES])
    asked = torch.arange(len(PHRASES)).repeat_interleave(len(emoji))
    order = torch.tensor([3, 0, 6, 1, 7, 4, 2, 5])
    still = asked == PHRASES.index("stands still")
    shuffled = read_motion(clips[:, order]) == asked
    assert shuffled[still].all()
    assert shuffled[~still].float().mean() < 0.3


def test_a_frozen_clip_stands_still(emoji):
    frozen = clips_of(emoji, "moves left")[:, 3:4].expand(-1, FRAMES, -1, -1, -1)
    assert set(read_motion(frozen).tolist()) == {PHRASES.index("stands still")}


def test_a_moved_frame_shows_the_picture_further_down_and_right():
    dot = torch.ones(1, 3, 32, 32)
    dot[..., 14:18, 14:18] = 0
    pose = torch.tensor([[[4.0, 8.0, 1.0, 0.0, 1.0]]])
    ink = 1 - render(dot, pose)[0, 0, 0]
    place = torch.arange(32.0) + 0.5
    assert (ink.sum(0) @ place / ink.sum()).item() == pytest.approx(16 + 4, abs=1e-3)
    assert (ink.sum(1) @ place / ink.sum()).item() == pytest.approx(16 + 8, abs=1e-3)


def test_turning_right_is_clockwise():
    mark = torch.ones(1, 3, 32, 32)
    mark[..., :8, 12:20] = 0  # above the middle
    last = 1 - clips_of(mark, "turns right")[0, -1, 0]
    assert last[:, 16:].sum() > 0.99 * last.sum()  # now to the right of it


def test_undo_gives_the_emoji_back(emoji):
    pose = torch.tensor([3.0, -2.0, 1.2, 30.0, 0.6])
    back = undo(render(emoji, pose.expand(len(emoji), 1, 5))[:, 0], pose)
    assert (back - emoji).square().mean().sqrt() < 0.12  # a smaller picture was sampled twice
    assert (subject(clips_of(emoji, "grows"), PHRASES.index("grows")) - emoji).square().mean().sqrt() < 0.12


def test_the_error_of_the_own_phrase_is_the_least_by_far(emoji):
    errors = phrase_errors(clips_of(emoji, "moves up")).sort(1).values
    assert (errors[:, 1] > 3 * errors[:, 0]).all()


def test_names_are_read_and_a_long_one_leaves_room_for_the_motion():
    images, names = base_emoji()
    assert images.shape == (1911, 3, 32, 32)
    assert (images.min(), images.max()) == (0, 1)
    assert len(set(names)) == 1910
    assert not [n for n in names if "skin tone" in n]
    assert caption(" ".join("abcdefghijklmnop"), "moves up").split()[-3:] == ["i", "moves", "up"]
    assert all(len(caption(n, "stands still").split()) <= WORDS for n in names)


def test_a_twentieth_of_the_pairs_is_held_out_the_same_on_every_machine():
    names = base_emoji()[1]
    held = torch.tensor([[held_out(n, p) for p in PHRASES] for n in names], dtype=torch.float)
    assert held.mean() == pytest.approx(HELD_OUT, abs=0.005)
    assert held.mean(0).tolist() == pytest.approx([HELD_OUT] * len(PHRASES), abs=0.015)
    assert [PHRASES[m] for m in range(len(PHRASES)) if held_out("rocket", PHRASES[m])] == ["moves down"]
