"""Prompts of the embedded text models: the emoji's names, and for clips a name and a motion.

A twentieth of the pairs of emoji and motion is held out from the training of the clip model, so that a score can
measure compositional generalization: the model has seen both parts, but not their pair.
"""

import hashlib
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.dataset.emoji import FILE
from qdit.storage.arrays import read_arrays

WORDS = 11
"""Words of a prompt that the embedded text encoder reads; its twelfth token is the end."""
HELD_OUT = 0.05
"""Share of the pairs of emoji and motion that are not trained."""


@cache
def base_emoji() -> tuple[Float[Tensor, "N 3 32 32"], list[str]]:
    """The 1,911 emoji without skin tones, in [0, 1], and their names; two of them share one name.

    Raises:
        UserError: the file is missing or damaged.
    """
    images, names = read_arrays(FILE, ("images", "names"), "reinstall qdit")
    keep = [i for i, name in enumerate(names) if ", skin tone" not in str(name)]
    return torch.from_numpy(images[keep]).permute(0, 3, 1, 2).float() / 255, [str(names[i]) for i in keep]


@cache
def base_shares() -> Float[Tensor, " N"]:
    """How often each of `base_emoji` is drawn in training: a class of n has a share of √n.

    Half of all names are variants of people, which would else be half of what the model sees.
    """
    labels, names = read_arrays(FILE, ("labels", "names"), "reinstall qdit")
    kept = torch.tensor(
        [int(label) for label, name in zip(labels, names, strict=True) if ", skin tone" not in str(name)]
    )
    shares = kept.bincount().double().rsqrt()[kept]
    return (shares / shares.sum()).float()


def caption(name: str, phrase: str) -> str:
    """The prompt of a clip. A long name is cut, so that the motion stays among the words that are read.

    >>> caption("rocket", "moves up")
    'rocket moves up'
    """
    return " ".join([*name.split()[: WORDS - len(phrase.split())], phrase])


def held_out(name: str, phrase: str) -> bool:
    """Whether this pair is kept out of the training, by a hash of the two."""
    digest = hashlib.sha256(f"held out: {name} / {phrase}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64
