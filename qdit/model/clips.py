"""What families of text to video with a causal autoencoder have in common: clips of a size that the option names.

A frame of the latents stands for several frames of the clip, except the first, which stands for one; decoding a frame
needs those before it, so that a clip is decoded whole. Networks that see all frames at once take any size whose
patches come out even.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.checks import number, whole
from qdit.model.loaded_text import LoadedText
from qdit.model.text import TextModel


class LoadedClips(LoadedText):
    """A pipeline of clips ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w].

    Args:
        frames, height, width: of the latents; None is `usual`.
    """

    modality = "video"
    framewise = False
    usual: ClassVar[tuple[int, int, int]]
    """Frames, height and width of the latents that the published pipeline makes where nobody says another size."""
    compression: ClassVar[tuple[int, int]] = (4, 8)
    """Frames and pixels (along a side) of a latent, of the published autoencoder."""
    patch: ClassVar[int] = 2
    """Latents of a token, along a side."""

    def __init__(
        self, *parts: Any, frames: int | None = None, height: int | None = None, width: int | None = None, **text: Any
    ) -> None:
        frames, height, width = (a or b for a, b in zip((frames, height, width), self.usual, strict=True))
        self.frames, self.height, self.width = frames, height, width
        self.latent_scale = self.compression[1]
        super().__init__(*parts, **text)

    def shape_of(self, config: Any) -> tuple[int, ...]:
        """See `Loaded`."""
        return config.in_channels, self.frames, self.height, self.width

    @property
    def facts(self) -> dict[str, int]:
        """See `Loaded`."""
        return super().facts | {"frames": self.frames, "height": self.height, "width": self.width}

    @classmethod
    def ratios(cls, config: Any) -> tuple[int, int]:
        """Frames and pixels (along a side) of a latent, by the config of an autoencoder."""
        return config.temporal_compression_ratio, 2 ** (len(config.block_out_channels) - 1)

    @classmethod
    def latents_of(cls, config: Any) -> tuple[int, int]:
        """See `Loaded`."""
        return config.latent_channels, cls.ratios(config)[1]

    @classmethod
    def latent_size(cls, frames: int, height: int, width: int, vae: Any) -> dict[str, int]:
        """Frames, height and width of the latents of a clip.

        Raises:
            UserError: the autoencoder, or the patches, do not divide it.
        """
        temporal, spatial = cls.compression if vae is None else cls.ratios(vae.config)
        pixels = cls.patch * spatial
        if frames % temporal != 1 % temporal or height % pixels or width % pixels:
            raise UserError(
                f"model.frames={frames}, model.height={height}, model.width={width}; allowed: {temporal} n + 1 frames "
                f"of multiples of {pixels} pixels"
            )
        return {"frames": (frames - 1) // temporal + 1, "height": height // spatial, "width": width // spatial}

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """See `LoadedText`; the size is what the pipeline's call makes where it is not told."""
        if pipe is not None and not facts:
            facts = cls.made_by(transformer, pipe)
        return super().adapt(transformer, pipe, text_length, **facts)

    @classmethod
    def made_by(cls, transformer: Any, pipe: Any) -> dict[str, int]:
        """Frames, height and width of the latents that a pipeline's call makes."""
        told = {key: each.default for key, each in signature(type(pipe).__call__).parameters.items()}
        return cls.latent_size(told["num_frames"], told["height"], told["width"], pipe.vae)

    def unscaled(self, latents: Float[Tensor, "1 C F h w"]) -> Float[Tensor, "1 C F h w"]:
        """A clip's latents as the autoencoder made them, from those that the network knows: of deviation one."""
        own: Any = self.decoder
        return latents / own.config.scaling_factor

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's latents [1, C, 1, 1, 1], where its config has them."""
        own: Any = self.decoder
        mean, deviation = (
            torch.as_tensor(values, device=self.device, dtype=own.dtype).view(1, -1, 1, 1, 1)
            for values in (own.config.latents_mean, own.config.latents_std)
        )
        return mean, deviation

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C F h w"]) -> UInt8[Tensor, "B frames 3 H W"]:
        """See `Loaded`; a clip at a time."""
        own: Any = self.decoder
        clips = []
        for n, clip in enumerate(latents.to(self.device, own.dtype).split(1)):
            frames = own.decode(self.unscaled(clip), return_dict=False)[0]
            clips.append(self.pixels(frames[0].transpose(0, 1), f"frames of clip {n}"))
        return torch.stack(clips)


@dataclass(kw_only=True)
class ClipModel(TextModel):
    """Which checkpoint, and the size of its clips.

    Args:
        frames: of a clip.
        height, width: of a frame, in pixels.
    """

    loaded: ClassVar[type[LoadedClips]]  # pyright: ignore[reportIncompatibleVariableOverride]
    reading = "as given"

    frames: Annotated[int, Ge(1)]
    height: Annotated[int, Ge(1)]
    width: Annotated[int, Ge(1)]

    def protocol(self) -> str:
        """See `TextModel`."""
        return f"{super().protocol()}|size={self.frames}×{self.height}×{self.width}"

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """See `TextModel`."""
        return self.loaded.latent_size(self.frames, self.height, self.width, vae)


def numbers(value: Any, count: Any) -> bool:
    """Whether this is a list of so many finite numbers."""
    return isinstance(value, list) and len(value) == count and all(map(number, value))


def whole_numbers(value: Any) -> bool:
    """Whether this is a list of one to ten whole numbers above 0."""
    return isinstance(value, list) and 1 <= len(value) <= 10 and all(whole(each) and each > 0 for each in value)
