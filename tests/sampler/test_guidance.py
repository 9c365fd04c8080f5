"""Guidance: none, by a null condition in one call or two, and by a scale that the network reads."""

from types import SimpleNamespace

import pytest
import torch

from qdit.sampler.ddim import DDIM
from qdit.sampler.guidance import OneCall, OneCondition, TwoCalls
from qdit.sampler.sampler import each_time

Y = torch.tensor([1, 2, 3])


class Linear:
    """A network of two channels, the second a learned variance, and what it was shown."""

    latent_shape, null_class, guided, told_guidance = (1, 2, 2), 9, "one_call", 1.0

    def __init__(self, **changes):
        self.calls = []
        vars(self).update(changes)

    def denoise(self, x, t, y):
        self.calls.append((t.tolist(), y.tolist()))
        return torch.cat([x * y.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1), x + y.view(-1, 1, 1, 1)], 1)


def predicted(guide, timestep=5):
    model, x = Linear(), torch.ones(3, 1, 2, 2)
    return guide(model, x, each_time(timestep, Y), Y)[:, :, 0, 0], model.calls


def test_without_guidance_the_null_condition_is_not_shown():
    output, calls = predicted(OneCondition())
    assert calls == [([5, 5, 5], [1, 2, 3])]
    assert output.tolist() == [[6, 2], [7, 3], [8, 4]]


@pytest.mark.parametrize(("kind", "null_first"), [(OneCall, False), (OneCall, True), (TwoCalls, False)])
def test_the_difference_to_the_null_condition_is_exaggerated_and_a_variance_is_not(kind, null_first):
    output, calls = predicted(kind(3.0, None, null_first))
    assert output[:, 0].tolist() == [14 + 3 * (y + 5 - 14) for y in (1, 2, 3)]
    assert output[:, 1].tolist() == [2, 3, 4]
    shown = [numbers for _, numbers in calls]
    halves = [[1, 2, 3], [9, 9, 9]]
    assert shown == (halves if kind is TwoCalls else [[*halves[null_first], *halves[not null_first]]])


def test_some_channels_alone_are_guided():
    model = Linear(latent_shape=(2, 2, 2))
    output = OneCall(2.0, 1, False)(model, torch.ones(3, 1, 2, 2), each_time(5, Y), Y)[:, :, 0, 0]
    assert output[:, 0].tolist() == [14 + 2 * (y - 9) for y in (1, 2, 3)]
    assert output[:, 1].tolist() == [2, 3, 4]


def test_times_are_whole_or_floats():
    assert each_time(7, Y).dtype == torch.long
    assert torch.equal(each_time(0.1, Y), torch.full((3,), 0.1))


@pytest.mark.parametrize(
    ("scale", "guided", "kind"),
    [
        (1.0, "one_call", OneCondition),
        (2.0, "one_call", OneCall),
        (2.0, "two_calls", TwoCalls),
        (1.0, "embedded", OneCondition),
        (2.0, "embedded", OneCondition),
    ],
)
def test_the_family_says_how_and_a_network_that_reads_the_scale_is_told(scale, guided, kind):
    sampler = DDIM(name="x", steps=2, guidance=scale, guided_channels=None, eta=0.0, spacing="leading")
    model = SimpleNamespace(guided=guided, told_guidance=0.5)
    assert type(sampler.guide(model)) is kind  # pyright: ignore[reportArgumentType]
    why = sampler.hides_null(model)  # pyright: ignore[reportArgumentType]
    assert (why is None) == kind.uses_null
    assert why is None or ("reads the scale" if guided == "embedded" else "sampler.guidance=1 is no guidance") in why
    sampler.inform(model)  # pyright: ignore[reportArgumentType]
    assert model.told_guidance == (scale if guided == "embedded" else 0.5)
    said = sampler.protocol(model)  # pyright: ignore[reportArgumentType]
    assert said.endswith(f"guidance={scale:g} as an input") == (guided == "embedded")
