"""Prompts of the embedded text models."""

import pytest

from qdit.dataset.emoji_prompts import COUNT, EmojiPrompts
from qdit.dataset.motion import PHRASES
from qdit.errors import UserError


def prompts(kind: str) -> EmojiPrompts:
    return EmojiPrompts(name=kind, file=kind, image_size=32, reference=kind)


def test_names_are_drawn_alike_everywhere():
    names = prompts("emoji")
    assert len(set(names.texts)) == 2 * COUNT + 1  # the evaluated, those of calibration, and the negative one
    assert names.labels([0, 1, COUNT], 0).tolist() == [0, 1, 0]
    assert names.texts[:3] == ["white medium small square", "man juggling", "woman cook"]


def test_motions_come_in_turn_and_held_out_pairs_apart():
    seen, held = prompts("motions"), prompts("motions_held_out")
    assert [text.endswith(f" {PHRASES[i % 12]}") for i, text in enumerate(seen.texts[:COUNT])] == [True] * COUNT
    assert not set(held.texts[:COUNT]) & set(seen.texts)
    for kind in (seen, held):  # so that a few clips show many emoji
        subjects = [text.removesuffix(PHRASES[i % 12]) for i, text in enumerate(kind.texts[:COUNT])]
        assert len(set(subjects)) == COUNT
    assert held.texts[COUNT:] == seen.texts[COUNT:]  # calibration never sees what was held out


def test_other_words_are_refused():
    with pytest.raises(UserError, match="dataset.file='captions.txt'; allowed: emoji, motions, motions_held_out"):
        prompts("captions.txt")
