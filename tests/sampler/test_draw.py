"""Samples in memory are those that a sampler makes one by one, with what each was asked to show."""

import pytest
import torch

from qdit.dataset.base import Dataset
from qdit.dataset.labels import RandomLabels
from qdit.errors import UserError
from qdit.sampler.ddim import DDIM
from qdit.sampler.draw import draw
from qdit.seeding import SEARCH


def test_batches_are_of_the_sampler_and_say_their_conditions(tiny_model):
    sampler = DDIM(name="ddim", steps=2, guidance=1.5, guided_channels=None, eta=0.0, spacing="leading")
    source = Dataset(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())
    found = draw(tiny_model, sampler, source, count=3, batch_size=2, seed=5, first=SEARCH)
    (one, two), labels = ([SEARCH, SEARCH + 1], [SEARCH + 2]), source.labels(range(SEARCH, SEARCH + 3), 5)
    expected = [sampler.sample(tiny_model, one, labels[:2], 5), sampler.sample(tiny_model, two, labels[2:], 5)]
    assert found.n == 3
    assert torch.equal(found.latents(), torch.cat(expected))
    assert found.prompts == [f"class {number}" for number in labels.tolist()]
    assert (found.clusters, found.framewise) == (None, tiny_model.framewise)
    assert found.frames_per_second == tiny_model.frames_per_second
    with pytest.raises(UserError, match="paired metric"):  # no extractors were given
        found.features("lite0")
