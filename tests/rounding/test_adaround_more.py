"""AdaRound's further keys: rounding that drops (QDrop), errors of layers inside a block (EDA-DM); 0 is without them."""

from dataclasses import replace

import pytest
import torch
from helpers import text_models
from helpers.adaround_parts import BLOCKS, QUICK, STATIC, codes, points, recipe, steps
from torch import nn

from qdit.activation import SidedInputs
from qdit.calibration.blocks import segments
from qdit.errors import UserError
from qdit.method import quantize
from qdit.rounding import AdaRound
from qdit.rounding.reconstruction import loop
from qdit.rounding.reconstruction.ste import Dropped, dropping
from qdit.rounding.reconstruction.targets import Targets
from qdit.rounding.reconstruction.units import list_units
from qdit.scope import Scope


@pytest.fixture
def data():
    return points(6)


class Half(nn.Module):
    """Rounds everything to 0.5."""

    def forward(self, x):
        return torch.full_like(x, 0.5) + 0 * x


def test_a_share_of_the_elements_passes_while_it_is_active():
    x = torch.rand(40, 50)
    module = Dropped(Half(), 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(module(x), Half()(x))
    with dropping([module, Half()]):
        seen = module(x), module(x)
        assert 0.2 < (seen[0] == x).float().mean() < 0.3
        assert ((seen[0] == x) | (seen[0] == 0.5)).all()
        assert not torch.equal(*seen)
        again = Dropped(Half(), 0.25, torch.Generator().manual_seed(0))
        again.active = True
        assert torch.equal(again(x), seen[0])
    assert torch.equal(module(x), Half()(x))


def test_gradients_of_dropped_elements_do_not_go_through_the_quantizer():
    x = torch.rand(1000, requires_grad=True)
    module = Dropped(nn.Threshold(2.0, 0.0), 0.5, torch.Generator().manual_seed(0))  # whose gradient is 0 everywhere
    with dropping([module]):
        module(x).sum().backward()
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("roles", "said"), [([], False), (["ffn_down"], True)])
def test_static_inputs_that_learn_no_step_are_said_once(roles, said, tiny_model, data, caplog):
    activation = replace(STATIC, regions=SidedInputs(roles=roles))
    quantize(tiny_model, recipe(AdaRound(**QUICK), ["ffn_up", "ffn_down"], activation=activation), lambda: data)
    found = [text for text in caplog.messages if "stay as calibrated" in text]
    assert len(found) == said
    assert all(text.startswith("adaround: 2 of 4 static quantizers") for text in found), found


def fitted(model, data, folder=None, **keys):
    return quantize(model, recipe(AdaRound(**QUICK, **keys), BLOCKS), lambda: data, folder)


def same(one, other):
    return all(torch.equal(a, codes(other)[name]) for name, a in codes(one).items()) and all(
        torch.equal(a, steps(other)[name]) for name, a in steps(one).items()
    )


@pytest.mark.parametrize(("key", "little", "much"), [("drop", 1e-30, 0.5), ("inner", 1e-30, 0.8)])
def test_0_is_what_next_to_nothing_is_and_more_is_not(tiny_model, data, key, little, much):
    """What 0 leaves out is done with so little that no bit can change."""
    plain, barely, fully = (fitted(tiny_model, data, **{key: value}) for value in (0.0, little, much))
    assert same(plain, barely)
    assert not same(plain, fully)


def test_keys_of_0_are_not_told():
    assert repr(AdaRound()) == repr(AdaRound(drop=0.0, inner=0.0))
    assert "drop" not in repr(AdaRound())


@pytest.mark.parametrize("keys", [{"drop": 0.5}, {"inner": 0.8}], ids=["drop", "inner"])
def test_a_killed_fit_goes_on_and_ends_with_the_same_bytes(tiny_model, data, keys, tmp_path):
    whole = fitted(tiny_model, data, tmp_path, **keys)
    (tmp_path / "block_001.safetensors").unlink()
    assert same(whole, fitted(tiny_model, data, tmp_path, **keys))
    assert same(whole, fitted(tiny_model, data, **keys))


def test_the_last_layer_of_a_block_is_left_out_and_no_other_and_one_pass_shows_all(tiny_model, data, monkeypatch):
    """A scope without feed-forwards ends with a layer whose errors the block's output does not show."""
    passes = []
    monkeypatch.setattr("qdit.rounding.reconstruction.targets.observed", lambda *a, **k: passes.append(a[2]) or {})
    sites = tiny_model.sites()
    for roles, left in ((BLOCKS[:2], []), (BLOCKS, ["transformer_blocks.0.ff.net.2"])):
        chosen = [site.name for site in sites if site.role in roles]
        parts = segments(sites, chosen)
        targets, unit = Targets(tiny_model, data, parts), list_units(parts, lambda one, other: False)[1][-1]
        targets.inner(unit, names := [site.name for site in unit.sites])
        assert [name for name in names if name not in passes[-1]] == left
    assert len(passes) == 2


def test_inner_targets_are_full_precision_s_of_all_layers_but_the_last(tiny_model, data, monkeypatch):
    seen = {}
    real = loop.reconstruct

    def look(task, learner, how, *others):
        seen.update({name: (target, set(learner.layers)) for name, target in task.inner.items()})
        return real(task, learner, how, *others)

    monkeypatch.setattr("qdit.rounding.reconstruction.session.reconstruct", look)
    fitted(tiny_model, data, inner=0.8)
    inside = [s.name for s in tiny_model.sites() if s.role in BLOCKS]
    assert seen.keys() == {name for name in inside if not name.endswith("ff.net.2")}
    outputs, network = {}, tiny_model.denoiser
    handles = [
        network.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: outputs.__setitem__(name, out))
        for name in seen
    ]
    with torch.no_grad():
        tiny_model.denoise(data.x, data.t, data.y)
    for handle in handles:
        handle.remove()
    for name, (target, layers) in seen.items():
        torch.testing.assert_close(target, outputs[name], atol=1e-5, rtol=1e-5)
        assert name in layers


def test_layers_inside_come_nearer_with_their_weight(tiny_model, data):
    """The sum of the layers' errors falls when it counts a great deal."""

    def inside(quantized):
        found = []
        with torch.no_grad():
            for s in tiny_model.sites():
                if s.name in quantized.layers and s.role == "qkv" and s.block == 0:
                    layer = tiny_model.denoiser.get_submodule(s.name)
                    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
                    found.append((quantized.layers[s.name](x) - layer(x)).square().mean())
        return torch.stack(found).sum()

    slow = {"iterations": 60, "rate": 0.1, "batch_size": 6, "round_weight": 0.0}
    plain, strong = (
        quantize(tiny_model, recipe(AdaRound(**slow, inner=weight), BLOCKS, bits=(3, 8)), lambda: data)
        for weight in (0.0, 100.0)
    )
    assert inside(strong) < inside(plain)


@pytest.mark.parametrize("wrong", [{"drop": 1.0}, {"drop": -0.1}, {"inner": -1.0}])
def test_wrong_values_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        AdaRound(**wrong)


def test_errors_of_rows_behind_a_prompts_end_count_nowhere(tmp_path):
    """Whatever stands there, the same is learned."""
    found = []
    for value in (1.0, -7.0):
        model = text_models.load("pixart_sigma", tmp_path)
        states = model.table.rows["encoder_hidden_states"]
        behind = torch.arange(states.shape[1]) >= torch.tensor(text_models.LENGTHS)[:, None]
        states[behind] = value
        parts = replace(recipe(AdaRound(**QUICK, inner=0.8), BLOCKS), scope=Scope(roles=("cross_kv", "cross_out")))
        found.append(codes(quantize(model, parts, lambda m=model: text_models.points(m, 6))))
    assert any(".attn2.to_k" in name for name in found[0])
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
