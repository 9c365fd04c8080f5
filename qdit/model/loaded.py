"""The base of loaded pipelines of all families: their parts, structure and decoding.

An adapter of a family is a subclass with a `denoise`, and an option (a dataclass with `load`) that makes it. The sites,
attentions and folds are those of the network as it was when it was loaded.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Fold, Guided, Site, Source, Turn
from qdit.model.checks import BETA_SCHEDULERS
from qdit.nn.clock import Clock

FACTS = ("text_length", "side", "frames", "height", "width", "token_times")
"""Names of `Loaded.facts`."""
LATENT_SCALE = 8
"""Pixels a latent, along a side, of the usual autoencoder."""


class Loaded(ABC):
    """A transformer and an autoencoder, ready to run: see `qdit.model.base.DiffusionModel`."""

    modality: str = "image"
    framewise: bool = True
    """Whether frames of a clip are decoded by themselves."""
    frames_per_second: int = 8
    """At which clips are shown, as the family's published ones are."""
    latent_scale: int = LATENT_SCALE
    """Pixels a latent, along a side, where the autoencoder is not known."""
    schedulers: tuple[str, ...] = BETA_SCHEDULERS
    """Classes that its scheduler may have."""
    guided: Guided = "one_call"
    told_guidance: float = 1.0
    guidance_word: str = "guidance_scale"
    """What the stock pipeline's call names the scale of guidance."""
    time_unit: float = 1.0
    """How many of the scheduler's timesteps one of those is that the stock pipeline gives the network."""

    def __init__(
        self,
        denoiser: nn.Module,
        autoencoder: nn.Module | None,
        schedule: dict[str, Any] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config: Any = denoiser.config
        self.denoiser, self.device, self.dtype = denoiser, device, dtype
        self.clock = Clock()
        self.latent_shape = self.shape_of(config)
        self.image_size: int = min(self.latent_shape[-2:]) * self.latent_scale
        channels = config.out_channels if "out_channels" in config else denoiser.out_channels
        self.learned_variance: bool = channels == 2 * config.in_channels
        self.autoencoder: nn.Module | None = None
        self._schedule: dict[str, Any] | None = None
        if autoencoder is not None and schedule is not None:
            self.complete(autoencoder, schedule)
        self._sites, self._attentions = self.structure(denoiser)
        self._folds = self.list_folds(self._sites)

    def complete(self, autoencoder: nn.Module | None, schedule: dict[str, Any]) -> None:
        """Take the rest of the pipeline: what decodes, if it is there, and the noise schedule of the training.

        Raises:
            UserError: the autoencoder's latents are not the transformer's.
        """
        self._schedule = schedule
        if autoencoder is None:
            return
        channels, scale = self.latents_of(autoencoder.config)
        if channels != self.latent_shape[0]:
            raise UserError(
                f"the autoencoder has {channels} latent channels, the transformer reads {self.latent_shape[0]}; set "
                "model.vae_path to the autoencoder that it was trained with"
            )
        self.autoencoder = autoencoder
        self.image_size = min(self.latent_shape[-2:]) * scale

    @classmethod
    def latents_of(cls, config: Any) -> tuple[int, int]:
        """Channels of an autoencoder's latents, and pixels of one along a side."""
        return config.latent_channels, 2 ** (len(config.block_out_channels) - 1)

    @abstractmethod
    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """The network's sites and attentions in forward order."""

    @abstractmethod
    def denoise(
        self, x: Float[Tensor, "B *latent"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B *out"]:
        """One call of the network on x_t, timesteps and numbers of conditions; its clock shows the timesteps."""

    def shape_of(self, config: Any) -> tuple[int, ...]:
        """The latents of one sample, by the transformer's config: [C, h, w], or [C, F, h, w]."""
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def facts(self) -> dict[str, int]:
        """What `adapt` is told, so that it sees the same network: sizes that the transformer's config does not say."""
        return {}

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Have a scheduler take so many steps, as the stock pipeline does."""
        scheduler.set_timesteps(steps)

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """Where changes of inputs can be folded: in every family, those of an attention's output into its values."""
        return value_folds(sites, self._attentions)

    def sites(self) -> list[Site]:
        """Every linear and the patch embedding, in forward order, as they were when the model was loaded."""
        return list(self._sites)

    def attentions(self) -> list[Attention]:
        """Every attention, in forward order."""
        return list(self._attentions)

    def folds(self) -> list[Fold]:
        """Where changes of inputs can be folded, in forward order of the readers."""
        return list(self._folds)

    def turns(self) -> list[Turn]:
        """The networks that take turns over the timesteps; none, as one always runs."""
        return []

    def attended(self, site: str, y: Int[Tensor, " B"]) -> Bool[Tensor, "B rows"] | None:
        """Which rows of a site's input anything depends on; None: all do."""
        return None

    def scheduler_config(self) -> dict[str, Any]:
        """The content of the pipeline's `scheduler_config.json`.

        Raises:
            UserError: the transformer came without its pipeline.
        """
        if self._schedule is None:
            raise UserError("this transformer came without its pipeline, and how its noise is scheduled is not known")
        return dict(self._schedule)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B *latent"]) -> UInt8[Tensor, "B *frames 3 H W"]:
        """Decode sampled latents to pixels: clamp(127.5 x + 128, 0, 255), truncated, as DiT does.

        Clips [B, C, F, h, w] are decoded frame by frame, a sample at a time, into [B, F, 3, H, W].

        Raises:
            UserError: a latent or a pixel is not finite, or the transformer came without its pipeline.
        """
        if latents.ndim == 5:
            clips = latents.transpose(1, 2)  # [B, F, C, h, w]
            return torch.stack([self._pixels(clip, f"frames of clip {n}") for n, clip in enumerate(clips)])
        return self._pixels(latents, "images")

    @property
    def decoder(self) -> Any:
        """The autoencoder.

        Raises:
            UserError: the transformer came without its pipeline.
        """
        if self.autoencoder is None:
            raise UserError("this transformer came without its pipeline, and nothing decodes what it makes")
        return self.autoencoder

    def _pixels(self, latents: Float[Tensor, "B C h w"], what: str) -> UInt8[Tensor, "B 3 H W"]:
        own = self.decoder
        latents = latents.to(self.device, own.dtype) / own.config.scaling_factor + (
            own.config.get("shift_factor") or 0.0
        )
        return self.pixels(own.decode(latents, return_dict=False)[0], what)

    @staticmethod
    def pixels(decoded: Float[Tensor, "B 3 H W"], what: str) -> UInt8[Tensor, "B 3 H W"]:
        """Decoded values as pixels.

        Raises:
            UserError: some are not finite; `what` they are is said.
        """
        pixels = decoded.float()
        broken = (~pixels.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            raise UserError(
                f"{len(broken)} of {len(pixels)} {what} are not finite after decoding (positions {broken[:8]}): the "
                "sampled latents diverged. Try more bits, a narrower scope, or dtype=float32"
            )
        return (127.5 * pixels + 128).clamp(0, 255).to(torch.uint8)


def value_folds(sites: list[Site], attentions: list[Attention]) -> list[Fold]:
    """The folds of attentions' outputs into their values, which may mix within a head.

    A token of the output is a mean of all tokens' values, weighted by the probabilities, which are the same for all
    channels of a head. In a joint attention the values of image and text make the outputs of both, so that one factor
    has two sources and two readers. These read different tensors, and transforms change one tensor at a time
    (`qdit.transform.inputs.fold_of`): such outputs are scaled and rotated at run time. Left out: keys and values with
    fewer heads than the queries.
    """
    widths = {site.name: (site.in_features, site.out_features) for site in sites}
    found: list[Fold] = []
    for attention in attentions:
        values = [name for part in ("to_v", "add_v_proj") if (name := f"{attention.name}.{part}") in widths]
        readers = [name for part in ("to_out.0", "to_add_out") if (name := f"{attention.name}.{part}") in widths]
        if values and readers and {widths[name][1] for name in values} == {widths[name][0] for name in readers}:
            sources = tuple(Source(name, linear=(0,)) for name in values)
            found.append(Fold(sources, tuple(sorted(readers, key=list(widths).index)), attention.head_dim))
    return found
