"""From noise to latents: one loop for every diffusers scheduler, with classifier-free guidance (arXiv 2207.12598).

Image i depends on (seed, i) and its label only: its initial noise and its ancestral noise come from its own CPU
generators. Guidance 1 is the plain conditional model and costs one pass; above 1 the conditional and the null batch go
through the network in one call, eps = null + guidance (cond - null). A learned variance is never guided: the
conditional half's is used (DDPM) or dropped (DDIM, DPM-Solver).

Left out: clipping of the predicted x_0, because latents have no fixed range; and guidance below 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from qdit.checked import Checked
from qdit.errors import from_problems
from qdit.model.base import DiffusionModel
from qdit.model.checks import COGVIDEOX_SCHEDULERS, predicts
from qdit.quant.time_groups import Time
from qdit.sampler.guidance import Guidance, OneCall, OneCondition, TwoCalls, TwoCallsNormed
from qdit.sampler.hook import Hook, Transition, absorbed, upcoming
from qdit.sampler.spacing import SPACINGS, Spacing, respaced_betas, visited
from qdit.seeding import generator, noise

Callback = Callable[[int, Time, Tensor, Tensor], None]
_SCHEDULE_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
    *("trained_betas", "prediction_type", "rescale_betas_zero_snr"),
)


@dataclass(kw_only=True)
class Sampler(Checked, ABC):
    """Steps, guidance and noise of a sampler; a subclass adds the scheduler. Every option has these keys."""

    kind: ClassVar[str]
    """The scheduler's name in the protocol."""
    null_first: ClassVar[bool] = False
    """Whether the null half comes first in the one call of guidance; it matters to rounding errors alone."""

    name: str
    steps: int
    guidance: float
    """1: no guidance; above 1: classifier-free guidance."""
    guided_channels: int | None
    """How many of the latent channels are guided, from the first; None: all."""
    eta: float
    """Share of the ancestral noise: 0 deterministic, 1 as much as DDPM."""
    spacing: Spacing

    @abstractmethod
    def make_scheduler(self, model: DiffusionModel) -> tuple[Any, Sequence[Time], Sequence[Time]]:
        """Build a fresh scheduler, its own timesteps, and those that are given to the model; both in sampling order."""

    @abstractmethod
    def step(self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Compute the next, less noisy state from the guided output [B, C or 2C, h, w]; `t` is the scheduler's own."""

    @property
    def absorbs(self) -> bool:
        """Whether steps add noise that can absorb an error of the prediction (see `qdit.sampler.hook`)."""
        return False

    def transition(self, scheduler: Any, output: Tensor, t: Time) -> Transition:
        """Describe one step; for samplers that absorb."""
        raise NotImplementedError(f"{self.kind} does not absorb errors")

    def update(
        self, scheduler: Any, output: Tensor, t: Time, x: Tensor, generators: list[torch.Generator], error: float
    ) -> Tensor:
        """Take one step whose noise absorbs an error of variance `error` in the predicted noise, if it can."""
        if error == 0 or not self.absorbs:
            return self.step(scheduler, output, t, x, generators)
        transition, noise = self.transition(scheduler, output, t), upcoming(generators, x)
        return absorbed(self.step(scheduler, output, t, x, generators), noise, transition, error)

    def timesteps(self, model: DiffusionModel) -> list[Time]:
        """List the timesteps that are given to the model, in sampling order (noisiest first)."""
        return list(self.make_scheduler(model)[2])

    def protocol(self, model: DiffusionModel | None = None) -> str:
        """Name everything that changes the full-precision samples, readably.

        For example `ddim20 leading|eta=0|cfg=2 on all`; of a network that reads the scale, `guidance=3.5 as an input`.

        Args:
            model: what is sampled; None is one that does not read it.
        """
        channels = "all" if self.guided_channels is None else f"{self.guided_channels} channels"
        guidance = "cfg=none" if self.guidance == 1 else f"cfg={self.guidance:g} on {channels}"
        if model is not None and model.guided == "embedded":
            guidance = f"guidance={self.guidance:g} as an input"
        return f"{self.kind}{self.steps} {self.spacing}|eta={self.eta:g}|{guidance}"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each problem of this option, alone and with this model."""
        schedule = model.scheduler_config()
        if predicts(schedule) == "velocity" or schedule.get("_class_name") in COGVIDEOX_SCHEDULERS:
            reason = "this model was trained to match a flow, and knows no betas"
            if predicts(schedule) != "velocity":
                reason = "this model was trained on betas whose signal-to-noise ratio is shifted"
            return [f"sampler={self.name}: {reason}; leave the sampler out, as the model's option brings its own"]
        problems = []
        total, channels = train_timesteps(model), model.latent_shape[0]
        fewest = 1 if self.spacing == "trailing" else 2  # with one step the others visit only t = 0, the clean end
        if not fewest <= self.steps <= total:
            problems.append(f"sampler.steps={self.steps}; allowed: {fewest} to {total}, the steps of the training")
        elif self.spacing == "leading" and self.steps * (total // self.steps) < 0.9 * total:
            start = (self.steps - 1) * (total // self.steps)
            problems.append(
                f"sampler.steps={self.steps} with spacing=leading would start at t={start} of {total}, where the "
                f"image is half made; use spacing=linspace, or a divisor of {total}"
            )
        if self.guidance < 1:
            problems.append(
                f"sampler.guidance={self.guidance}; allowed: 1 (no guidance, the plain conditional model) or more"
            )
        if self.guided_channels is not None and not 1 <= self.guided_channels <= channels:
            problems.append(
                f"sampler.guided_channels={self.guided_channels}; allowed: null (all {channels}) or 1 to {channels}"
            )
        if self.spacing not in SPACINGS:
            problems.append(f"sampler.spacing={self.spacing}; allowed: {', '.join(SPACINGS)}")
        return problems

    def guide(self, model: DiffusionModel) -> Guidance:
        """How predictions of this model are guided."""
        if self.guidance == 1 or model.guided == "embedded":
            return OneCondition()
        kinds = {"one_call": OneCall, "two_calls": TwoCalls, "two_calls_normed": TwoCallsNormed}
        return kinds[model.guided](self.guidance, self.guided_channels, self.null_first)

    def hides_null(self, model: DiffusionModel) -> str | None:
        """Why the network is never shown the null condition, and what to do about it; None if it is."""
        if self.guide(model).uses_null:
            return None
        if model.guided == "embedded":
            return "the network reads the scale of guidance, and sees no negative prompt; leave it empty"
        return f"sampler.guidance={self.guidance:g} is no guidance; use one above 1, or leave it empty"

    def inform(self, model: DiffusionModel) -> None:
        """Tell a network that reads the scale of guidance what it is, for every call from now on."""
        if model.guided == "embedded":
            model.told_guidance = self.guidance

    def predict(
        self, model: DiffusionModel, x: Float[Tensor, "B C h w"], timestep: Time, labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O h w"]:
        """Run the denoiser with guidance at one timestep.

        Args:
            model: the model; O is 2C if its variance is learned, else C.
            x: the noisy latents x_t, on the model's device.
            timestep: the one that is given to the model.
            labels: the classes, on the model's device.

        Returns:
            The guided output in float32: the first C channels predict the noise, the others are the conditional ones.
        """
        return self.guide(model)(model, x, each_time(timestep, labels), labels)

    @torch.no_grad()
    def sample(
        self,
        model: DiffusionModel,
        indices: Sequence[int],
        labels: Int[Tensor, " B"],
        seed: int,
        callback: Callback | None = None,
        hook: Hook | None = None,
        until: int | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """Sample the latents of `indices`.

        Args:
            model: in full precision or quantized.
            indices: sample numbers; each has its own noise.
            labels: one class for each index.
            seed: of all noise.
            callback: called as (step, timestep, x_t, guided output) after each call of the denoiser and of the hook.
            hook: corrects the guided output, and the noise of the steps.
            until: the number of steps to take; the state after them is returned. None takes all.

        Returns:
            Float32 latents on the model's device, scaled as the denoiser knows them.

        Raises:
            UserError: an option is out of range (see `check`).
        """
        if problems := self.check(model):
            raise from_problems(problems, f"sampler {self.name}")
        if len(labels) != len(indices):
            raise ValueError(f"{len(indices)} indices with {len(labels)} labels")
        self.inform(model)
        scheduler, own, told = self.make_scheduler(model)
        generators = [generator(seed, "step", i) for i in indices]
        x = torch.stack([noise(seed, "latent", i, model.latent_shape) for i in indices]).to(model.device)
        labels = labels.to(model.device)
        for step, (t, timestep) in enumerate(zip(own[:until], told[:until], strict=True)):
            output = self.predict(model, x, timestep, labels)
            if hook is not None:
                output = hook.output(output, timestep)
            if callback is not None:
                callback(step, timestep, x, output)
            x = self.update(scheduler, output, t, x, generators, hook.error(timestep) if hook else 0.0)
        return x


def each_time(timestep: Time, like: Int[Tensor, " B"]) -> Real[Tensor, " B"]:
    """One timestep for each sample: int64 if it is whole, as models with counted timesteps take it, else float32."""
    dtype = torch.long if isinstance(timestep, int) else torch.float32
    return torch.full(like.shape, timestep, dtype=dtype, device=like.device)


def schedule_options(model: DiffusionModel) -> dict[str, Any]:
    """Select what every diffusers scheduler shares from the model's training schedule."""
    config = model.scheduler_config()
    return {k: config[k] for k in _SCHEDULE_KEYS if config.get(k) is not None}


def train_timesteps(model: DiffusionModel) -> int:
    """Return the number of timesteps of the training; 1000 is the diffusers default."""
    return model.scheduler_config().get("num_train_timesteps", 1000)


def respaced(kind: Any, model: DiffusionModel, spacing: Spacing, steps: int, **options: Any):
    """Build a diffusers scheduler of class `kind` on the shorter diffusion (see `qdit.sampler.spacing`).

    Returns:
        The scheduler, its own timesteps N-1 … 0, and the original timesteps that the model is told.
    """
    shared = schedule_options(model)
    told = visited(spacing, steps, train_timesteps(model))
    betas = respaced_betas(kind(**shared).betas, told)
    shared = {"prediction_type": shared.get("prediction_type", "epsilon"), "num_train_timesteps": steps}
    scheduler = kind(**shared, trained_betas=betas, clip_sample=False, timestep_spacing="leading", **options)
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.timesteps.tolist(), told[::-1]
