"""Samplers against the original DiT's formulas and against diffusers; batch invariance; guidance; complaints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import original_dit as original
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdit.errors import UserError
from qdit.model.dit import DiT
from qdit.sampler.ddim import DDIM
from qdit.sampler.ddpm import DDPM
from qdit.sampler.dpm_solver import DPMSolver
from qdit.sampler.pipeline import PipelineSampler
from qdit.sampler.spacing import visited
from qdit.seeding import generator, noise

CONF = Path(__file__).parents[2] / "conf" / "sampler"
ELSEWHERE = {"own_call", "wan_2_2_a14b"}  # in tests/runs/test_external.py, tests/model/test_wan_a14b.py
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml") if p.stem not in ELSEWHERE)
LABELS = torch.tensor([1, 7, 9])


def make(kind, **changes):
    """A sampler with short defaults."""
    defaults = {"name": "test", "steps": 5, "guidance": 1.5, "guided_channels": None, "eta": 0.0, "spacing": "linspace"}
    return kind(**(defaults | changes))


def start(model, indices, seed=0):
    return torch.stack([noise(seed, "latent", i, model.latent_shape) for i in indices])


@pytest.mark.parametrize("name", OPTIONS)
def test_options_have_equal_keys_and_sample(name, tiny_model):
    configs = {n: OmegaConf.load(CONF / f"{n}.yaml") for n in OPTIONS}
    config = configs[name]
    assert list(config) == list(configs["ddim"])
    assert config.name == name
    assert config._target_.startswith("qdit.sampler.")
    config.steps = 5
    sampler = instantiate(config)
    latents = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0)
    assert latents.dtype == torch.float32
    assert latents.shape == (3, 4, 8, 8)
    assert latents.isfinite().all()
    assert latents.std() > 0.1
    assert len(sampler.timesteps(tiny_model)) == 5
    assert torch.equal(latents, sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0))
    assert not torch.allclose(latents, sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=1))


@pytest.mark.parametrize("count", [2, 3, 7, 20, 50, 55, 75, 100, 250, 1000])
def test_linspace_visits_the_original_timesteps(count):
    assert visited("linspace", count, 1000) == original.space_timesteps(1000, count)


def test_respaced_ddim_is_the_original(tiny_model):
    sampler = make(DDIM, guided_channels=3)
    told = [999, 749, 500, 250, 0]
    assert sampler.timesteps(tiny_model) == told
    found = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0)
    expected = original.ddim(tiny_model.denoise, start(tiny_model, range(3)), LABELS, told[::-1], 1.5, 10)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_respaced_ddpm_with_learned_variance_is_the_original(tiny_model):
    sampler = make(DDPM, guided_channels=3, eta=1.0)
    found = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0)
    streams = [generator(0, "step", i) for i in range(3)]
    draws = [torch.cat([torch.randn((1, 4, 8, 8), generator=g) for g in streams]) for _ in range(4)]
    told = visited("linspace", 5, 1000)
    expected = original.ddpm(tiny_model.denoise, start(tiny_model, range(3)), LABELS, told, 1.5, 10, draws)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_ddim_leading_is_diffusers(tiny_model):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(10)
    sampler = make(DDIM, steps=10, spacing="leading", guidance=1.0)
    assert sampler.timesteps(tiny_model) == scheduler.timesteps.tolist()
    x = start(tiny_model, range(3))
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            output = tiny_model.denoise(x, torch.full((3,), t), LABELS)[:, :4]
            x = scheduler.step(output, t, x).prev_sample
    found = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0)
    assert (found - x).abs().max() < 1e-4 * x.abs().max()


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_dpm_solver_visits_diffusers_timesteps(spacing, tiny_model):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", timestep_spacing=spacing)
    for steps in (2, 10, 20, 33):
        scheduler.set_timesteps(steps)
        found = make(DPMSolver, steps=steps, spacing=spacing).timesteps(tiny_model)
        assert found == scheduler.timesteps.tolist()


def test_solvers_agree_where_the_noise_is_known():
    """With the exact noise of a single data point, every sampler ends at that point."""

    class Exact:
        latent_shape, learned_variance, null_class, device = (4, 8, 8), False, 10, torch.device("cpu")
        point, guided = noise(9, "latent", 0, (4, 8, 8)), "one_call"

        def scheduler_config(self):
            return {"beta_schedule": "linear", "num_train_timesteps": 1000}

        def denoise(self, x, t, y):
            bar = torch.tensor(original.alphas_bar(t.tolist())).float().view(-1, 1, 1, 1)
            return (x - bar.sqrt() * self.point) / (1 - bar).sqrt()

    samplers = [
        make(DDIM),
        make(DDIM, eta=0.7, spacing="trailing"),
        make(DDPM, eta=1.0),
        make(DPMSolver),
        make(DPMSolver, eta=1.0),
    ]
    for sampler in samplers:
        latents = sampler.sample(Exact(), [0, 1, 2], LABELS, seed=0)  # pyright: ignore[reportArgumentType]
        assert torch.allclose(latents, Exact.point.expand(3, -1, -1, -1), atol=5e-3), sampler


@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 0.0), (DDIM, 1.0), (DDPM, 1.0), (DPMSolver, 0.0), (DPMSolver, 1.0)])
def test_image_does_not_depend_on_its_batch(kind, eta, tiny_model):
    sampler = make(kind, eta=eta)
    together = sampler.sample(tiny_model, [4, 8, 6], LABELS, seed=0)
    alone = sampler.sample(tiny_model, [6], LABELS[2:], seed=0)
    turned = sampler.sample(tiny_model, [6, 4], LABELS[[2, 0]], seed=0)
    assert torch.allclose(together[2:], alone, atol=1e-3, rtol=1e-3)
    assert torch.allclose(together[[2, 0]], turned, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 0.0), (DDPM, 1.0), (DPMSolver, 1.0)])
def test_gpu_gets_the_noise_of_the_cpu(kind, eta, tiny_model, tiny_pipeline):
    on_gpu = DiT(name="tiny", path=str(tiny_pipeline)).load("cuda", torch.float32)
    sampler = make(kind, eta=eta)
    found = sampler.sample(on_gpu, [0, 1, 2], LABELS, seed=0)
    expected = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0)
    assert found.device.type == "cuda"
    assert torch.allclose(found.cpu(), expected, atol=1e-2, rtol=1e-2)
    assert on_gpu.decode(found).shape == (3, 3, 16, 16)


def test_no_guidance_is_one_conditional_pass(tiny_model):
    x, seen = start(tiny_model, range(3)), []
    call = tiny_model.denoise
    tiny_model.denoise = lambda x, t, y: seen.append(len(x)) or call(x, t, y)
    with torch.no_grad():
        plain = make(DDIM, guidance=1.0).predict(tiny_model, x, 500, LABELS)
        guided = make(DDIM, guidance=2.0).predict(tiny_model, x, 500, LABELS)
        three = make(DDIM, guidance=2.0, guided_channels=3).predict(tiny_model, x, 500, LABELS)
        null = call(x, torch.full((3,), 500), torch.full((3,), 10))
    assert seen == [3, 6, 6]
    assert torch.allclose(guided[:, :4], (2 * plain - null)[:, :4], atol=1e-5)
    assert torch.allclose(guided[:, 4:], plain[:, 4:], atol=1e-5)  # the learned variance is the conditional one
    assert torch.allclose(three[:, :3], guided[:, :3])
    assert torch.allclose(three[:, 3:], plain[:, 3:], atol=1e-5)


def test_clock_and_callback_follow_the_trajectory(tiny_model):
    shown, seen = [], []
    sampler = make(DDIM)

    def record(step, timestep, x, output):
        assert tiny_model.clock.timesteps is None, "outside of the network the clock shows nothing"
        assert shown[-1] == [timestep] * len(shown[-1])
        assert timestep == sampler.timesteps(tiny_model)[step]
        seen.append((timestep, x, output))

    handle = tiny_model.denoiser.transformer_blocks[1].register_forward_pre_hook(
        lambda *_: shown.append(tiny_model.clock.read(3 if sampler.guidance == 1 else 6).tolist())
    )
    final = sampler.sample(tiny_model, [0, 1, 2], LABELS, seed=0, callback=record)
    handle.remove()
    assert [t for t, _, _ in seen] == sampler.timesteps(tiny_model)
    assert torch.equal(seen[0][1], start(tiny_model, range(3)))
    assert seen[0][2].shape == (3, 8, 8, 8)
    with torch.no_grad():
        again = sampler.predict(tiny_model, seen[2][1], seen[2][0], LABELS)
    assert torch.equal(again, seen[2][2])
    assert not final.requires_grad


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        (DDIM, {"steps": 0}, "steps=0"),
        (DDIM, {"steps": 1}, "steps=1"),
        (DDIM, {"steps": 1001}, "steps=1001"),
        (DDIM, {"steps": 600, "spacing": "leading"}, "would start at t=599"),
        (DDIM, {"spacing": "karras"}, "spacing='karras'"),
        (DDIM, {"guidance": 0.0}, "guidance=0.0"),
        (DDIM, {"guided_channels": 5}, "guided_channels=5"),
        (DDIM, {"eta": 2.0}, "eta=2.0"),
        (DDPM, {"eta": 0.0}, "eta=0.0"),
        (DPMSolver, {"eta": 0.5}, "eta=0.5"),
        (DPMSolver, {"steps": 1000}, "fewer steps"),
    ],
)
def test_wrong_options_are_named(kind, changes, word, tiny_model):
    with pytest.raises(UserError, match=word):
        make(kind, **({"eta": 1.0} if kind is DDPM else {}) | changes).sample(tiny_model, [0], LABELS[:1], seed=0)


def test_all_problems_come_at_once(tiny_model):
    assert len(make(DDIM, steps=0, guidance=-1.0, guided_channels=9, eta=3.0).check(tiny_model)) == 4


def test_what_is_not_a_number_is_named():
    with pytest.raises(UserError, match=r"DDIM.steps='many'; .*\n.*DDIM.eta=None"):
        make(DDIM, steps="many", eta=None)


def test_protocol_is_readable():
    assert make(DDIM).protocol() == "ddim5 linspace|eta=0|cfg=1.5 on all"
    assert make(DDPM, guided_channels=3, eta=1.0).protocol() == "ddpm5 linspace|eta=1|cfg=1.5 on 3 channels"
    assert make(DPMSolver, guidance=1.0, guided_channels=3).protocol() == "dpm_solver5 linspace|eta=0|cfg=none"


def test_a_stock_scheduler_without_eta_is_given_none(tiny_model):
    own = {"steps": 3, "guidance": 2.0, "guided_channels": None, "spacing": "scheduler", "name": "pipeline"}
    model = SimpleNamespace(guided="one_call", scheduler_config=lambda: {"_class_name": "DPMSolverMultistepScheduler"})
    [said] = PipelineSampler(**own, eta=0.5).check(model)  # pyright: ignore[reportArgumentType]
    assert said == "sampler.eta=0.5; the model's scheduler, DPMSolverMultistepScheduler, reads none: use sampler.eta=0"
    assert PipelineSampler(**own, eta=0.0).check(model) == []  # pyright: ignore[reportArgumentType]
    for unread in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):  # whose steps have an eta, and ignore it
        model.scheduler_config = lambda name=unread: {"_class_name": name}
        assert "reads none: use sampler.eta=0" in PipelineSampler(**own, eta=0.5).check(model)[0]  # pyright: ignore[reportArgumentType]
    model.scheduler_config = lambda: {"_class_name": "DDIMScheduler"}
    assert PipelineSampler(**own, eta=0.5).check(model) == []  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_run_whose_first_timesteps_are_equal_takes_all_its_steps(kind):
    """Wan's shift of 12 puts the first two of 100 whole timesteps at 999."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 12.0}
    model: Any = SimpleNamespace(
        scheduler_config=lambda: flow | {"_class_name": kind},
        set_timesteps=lambda scheduler, steps: scheduler.set_timesteps(steps),
    )
    own = {"guidance": 1.0, "guided_channels": None, "spacing": "scheduler", "name": "pipeline", "eta": 0.0}
    sampler = PipelineSampler(**own, steps=100)
    scheduler, times, _ = sampler.make_scheduler(model)
    assert times[:2] == [999, 999]
    x = torch.ones(1, 2, 2, 2)
    for t in times:
        x = sampler.step(scheduler, torch.full_like(x, 0.5), t, x, [])
    assert torch.allclose(x, torch.full_like(x, 0.5), atol=1e-3)  # one unit of time at a constant velocity
