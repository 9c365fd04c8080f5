"""Adapters of networks that are loaded already."""

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

import qdit
from qdit.errors import UserError
from qdit.model.adapter import Listener, adapt, completed
from qdit.nn.clock import Clock


def test_a_stock_transformer_is_seen_as_a_loaded_model_is(tiny_pipe, tiny_model):
    found = adapt(tiny_pipe.transformer)
    assert found.sites() == tiny_model.sites()
    assert found.folds() == tiny_model.folds()
    with pytest.raises(UserError, match="came without its pipeline"):
        found.decode(torch.zeros(1, 4, 8, 8))
    whole = completed(found, tiny_pipe)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.decode(latents), tiny_model.decode(latents))
    assert whole.image_size == tiny_model.image_size == 16


def test_a_scheduler_that_does_not_say_how_noise_was_is_refused(tiny_pipe):
    tiny_pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(UserError, match="EulerDiscreteScheduler"):
        completed(adapt(tiny_pipe.transformer), tiny_pipe)


def test_the_clock_shows_nothing_behind_a_call_even_one_that_fails(tiny_pipe, tiny_model):
    clock = tiny_model.clock
    hooks = Listener(clock, 10).listen(tiny_pipe.transformer)
    shown = []
    tiny_pipe.transformer.proj_out_1.register_forward_hook(lambda *_: shown.append(clock.timesteps.tolist()))
    x, y = torch.zeros(2, 4, 8, 8), torch.tensor([1, 1000])
    tiny_pipe.transformer(x, torch.tensor([7]), y)
    assert (shown, clock.timesteps) == ([[7, 7]], None)
    with pytest.raises(RuntimeError):
        tiny_pipe.transformer(x[:, :3], torch.tensor([7]), y)
    assert clock.timesteps is None
    for hook in hooks:
        hook.remove()
    with pytest.raises(IndexError):
        tiny_pipe.transformer(x, torch.tensor([7]), y)  # the null class of DiTPipeline, which nobody mends now


def test_a_sample_whose_tokens_have_timesteps_is_as_noisy_as_its_noisiest():
    """Wan 2.2 shows the tokens of a given first frame no noise."""
    from diffusers import WanTransformer3DModel
    from helpers.families import wan

    _, config, _ = wan()
    network, clock, shown = WanTransformer3DModel(**config), Clock(), []
    Listener(clock, 0).listen(network)
    network.proj_out.register_forward_hook(lambda *_: shown.append(clock.timesteps.tolist()))
    times = torch.tensor([[0.0] * 16 + [500.0] * 32, [900.0] * 48])
    network(torch.zeros(2, 4, 3, 8, 8), times, torch.zeros(2, 12, 16))
    assert shown == [[500.0, 900.0]]


def test_the_embedded_model_is_a_stock_pipeline():
    from diffusers import DiTPipeline

    pipe = qdit.embedded()
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is DiTPipeline
    images = pipe([pipe.labels["cat-face"]], num_inference_steps=2, generator=torch.manual_seed(0)).images
    assert images[0].size == (32, 32)
