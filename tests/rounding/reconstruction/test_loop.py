"""The learning loop against loops as the released code has them, and what the size of the inputs must not change."""

import math
from types import SimpleNamespace

import pytest
import torch

from qdit.errors import UserError
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.affine import affine
from qdit.quant.spec import QuantSpec
from qdit.rounding.reconstruction.loop import Learner, Learning, reconstruct, shuffled
from qdit.rounding.reconstruction.soft import SoftWeight
from qdit.rounding.reconstruction.ste import LearnedStep
from qdit.rounding.reconstruction.targets import Task

POINTS, WIDTH = 12, 8


def unit(bits=4, factor=1.0, *, relative=True):
    """A layer of 3 bits; inputs [points, tokens, channels] are `factor` times as large, the weight as much smaller."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(POINTS, 5, WIDTH, generator=random), torch.randn(6, WIDTH, generator=random)
    target = x @ weight.T
    x, weight = factor * x, weight / factor
    spec = QuantSpec(bits=bits, granularity="tensor", dynamic=False)
    ends = (0.7 * end.view(1, 1) for end in x.aminmax())  # clipped, so that there is something to learn
    step = LearnedStep(StaticQuantizer(spec, affine(*ends, spec)), relative=relative)
    rows = QuantSpec(bits=3, dynamic=False)
    soft = SoftWeight(weight, affine(weight.amin(1, True), weight.amax(1, True), rows), rows)
    layer = SimpleNamespace(weight=None)
    learner = Learner({"layer": layer}, {"layer": soft}, {"layer.input": step})  # pyright: ignore[reportArgumentType]
    return Task(lambda rows: step(x[rows]) @ layer.weight.T, target), learner, x


def learn(task, learner, how):
    """The scale of the step after each iteration."""
    (step,), seen = learner.steps.values(), []
    reconstruct(task, learner, how, torch.Generator().manual_seed(1), tick=lambda: seen.append(step.scale.detach()))
    return torch.cat(seen).view(-1)


def released(iterations, warmup, start=20.0, end=2.0):
    """The penalty's weight and β of each iteration, as BRECQ's code counts: from 1, and silent below the warm-up."""
    for count in range(1, iterations + 1):
        begin = warmup * iterations
        done = (count - begin) / (iterations - begin)
        yield 0.01 * (count >= begin), start if count < begin else end + (start - end) * max(0.0, 1 - done)


@pytest.mark.parametrize(("iterations", "warmup"), [(20, 0.2), (20, 0.0), (7, 0.5), (1, 0.2), (500, 0.2)])
def test_the_penalty_begins_with_the_last_iteration_of_the_warm_up(iterations, warmup):
    task, learner, _ = unit()
    (soft,), seen = learner.weights.values(), []
    soft.learn = lambda gradient, weight, beta: seen.append((weight, beta))
    reconstruct(task, learner, Learning(iterations=iterations, warmup=warmup), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(list(released(iterations, warmup))))


@pytest.mark.parametrize(("unit_name", "rate"), [("absolute", 2e-3), ("relative", 0.1)])
def test_the_loop_is_the_plain_one_of_autograd_and_adam(unit_name, rate):
    how = Learning(iterations=30, batch_size=4, rate=0.02, step_rate=rate, step_unit=unit_name)
    task, learner, x = unit(relative=unit_name == "relative")
    (soft,), (step,) = learner.weights.values(), learner.steps.values()
    random = torch.Generator().manual_seed(0)  # as in `unit`
    _, original = torch.randn(POINTS, 5, WIDTH, generator=random), torch.randn(6, WIDTH, generator=random)
    floor = (original / soft.grid.scale).floor()
    alpha, scale = soft.alpha.clone().requires_grad_(), step.scale.detach().clone().requires_grad_()
    found = learn(task, learner, how)

    lr = rate if unit_name == "absolute" else rate * float(scale.detach()) / 2**4
    stepping, rounding = torch.optim.Adam([scale], lr=lr), torch.optim.Adam([alpha], lr=0.02)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepping, T_max=30)
    batches, lowest = shuffled(POINTS, 4, torch.Generator().manual_seed(1)), soft.grid.low - soft.grid.zero_point
    for weight, beta in released(30, 0.2):
        rows = next(batches)
        scaled = x[rows] / scale
        rounded = (scaled + (scaled.round() - scaled).detach()).clamp(step.lo, step.hi) * scale
        h = (1.2 * alpha.sigmoid() - 0.1).clamp(0, 1)
        soft_weight = (floor + h).clamp(lowest, lowest + 7) * soft.grid.scale
        loss = 256 * (rounded @ soft_weight.T - task.target[rows]).square().mean()
        (loss + weight * (1 - (2 * h - 1).abs() ** beta).sum()).backward()
        for part in (stepping, rounding):
            part.step()
            part.zero_grad()
        cosine.step()
    torch.testing.assert_close(found[-1:], scale.detach().view(-1), rtol=1e-4, atol=0)
    torch.testing.assert_close(soft.alpha, alpha.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e-3])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_end_of_a_range_moves_by_the_rate_in_steps_whatever_the_inputs_size(bits, factor):
    task, learner, _ = unit(bits, factor)
    (step,) = learner.steps.values()
    start = step.scale.item()
    (after,) = learn(task, learner, Learning(iterations=1, step_rate=0.25, step_unit="relative"))
    assert abs(after.item() / start - 1) * 2**bits == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_inputs_of_any_size_learn_the_same_steps_and_codes(factor):
    how = Learning(iterations=60, batch_size=4, rate=0.02, step_rate=0.06, step_unit="relative")
    found = []
    for size in (1.0, factor):
        task, learner, _ = unit(factor=size)
        found.append((learn(task, learner, how) / size, learner.weights["layer"].hard().codes))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=0)
    assert torch.equal(found[0][1], found[1][1])
    assert abs(math.log(found[0][0][-1] / found[0][0][0])) > 0.01


def test_an_absolute_rate_moves_large_and_small_steps_alike():
    moved = []
    for factor in (1.0, 1e3):
        task, learner, _ = unit(factor=factor, relative=False)
        (step,) = learner.steps.values()
        start = step.scale.item()
        moved.append(abs(learn(task, learner, Learning(iterations=1, step_rate=1e-2, step_unit="absolute")) - start))
    torch.testing.assert_close(*moved, rtol=1e-2, atol=0)


def test_units_of_few_bits_learn_longer():
    how = Learning(iterations=500, low_bits=4)
    assert [how.scaled(bits).iterations for bits in ([8, 4], [4, 3], [2], [])] == [500, 2000, 2000, 500]


@pytest.mark.parametrize("wrong", [{"step_unit": "percent"}, {"low_bits": 0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Learning(**wrong)
