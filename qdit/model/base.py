"""The interface of a diffusion transformer: its latents, its sites with their roles, and functions to run it.

A *site* is a place that may be quantized: a linear layer, or one operand of an attention. Its *role* says what it is
for (qkv projection, feed-forward up, adaLN, …). An adapter wraps a diffusers model from outside; the model itself is
neither copied nor edited.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor, nn

from qdit.nn.clock import Clock


@dataclass(frozen=True)
class Site:
    """A linear layer that may be quantized, or the patch-embedding convolution, seen as a linear layer."""

    name: str
    """Module path inside the denoiser."""
    role: str
    """One of `qdit.model.roles.ROLES`."""
    block: int | None
    """Number of its transformer block, in the order in which they run; None outside the blocks."""
    in_features: int
    out_features: int
    tokens: int
    """Rows of its input per sample: 1 for adaLN and for the embedders of timestep and class."""
    stage: int
    """Order of execution inside its block, equal for layers that share their input (q, k and v).

    Attention input 0, attention output 1, ffn up 2, ffn down 3; what prepares the block's conditioning is negative.
    Outside the blocks: the order of execution among the sites before, or after, the blocks.
    """
    path: str | None = None
    """Module path of its block; None outside the blocks."""
    reads: str | None = field(default=None, repr=False)
    """Name of the first site that reads this very tensor, in whichever block; None: nothing is known of others."""
    second: int | None = field(default=None, repr=False)
    """The first channel of the second of two inputs that lie side by side; None: there is one."""
    gated: bool = field(default=False, repr=False)
    """Whether a feed-forward's second layer reads a product with a gate, which no activation function bounds below."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample and forward pass."""
        return self.tokens * self.in_features * self.out_features


def readers_of_inputs(sites: Iterable[Site]) -> list[list[Site]]:
    """Sites in forward order, grouped by the very tensor that they read: q, k and v of a self-attention are a group."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.reads or site.name, []).append(site)
    return list(groups.values())


Operand = Literal["q", "k", "v", "probs"]
OPERANDS = get_args(Operand)
"""What an attention multiplies: queries, keys, values and probabilities; the roles of its sites."""


@dataclass(frozen=True)
class Attention:
    """An attention, whose operands are sites of their own: `<name>.q`, `<name>.k`, `<name>.v` and `<name>.probs`."""

    name: str
    """Module path inside the denoiser."""
    block: int | None
    """Number of its transformer block, as a `Site`'s; None outside the blocks."""
    heads: int
    head_dim: int
    tokens: int
    """Queries per sample, or per copy."""
    keys: int
    """Keys and values per sample, or per copy."""
    copies: int = 1
    """Attentions of this kind in one sample, side by side: one a frame in a video's spatial blocks."""

    @property
    def sites(self) -> dict[str, str]:
        """Site name by operand."""
        return {operand: f"{self.name}.{operand}" for operand in OPERANDS}

    @property
    def processor(self) -> str:
        """Path of its diffusers attention processor."""
        return f"{self.name}.processor"

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample and forward pass of either of the two products, q kᵀ and probs v."""
        return self.copies * self.heads * self.tokens * self.keys * self.head_dim


@dataclass(frozen=True)
class Source:
    """A linear layer that makes tokens of an input. Each range of its output rows is as long as the input is wide.

    Channel c of these tokens is a sum of terms, each a multiple of output row c of one of the ranges (a plain row), or
    of 1 + that row (adaLN's scale).
    """

    layer: str
    """Module path inside the denoiser."""
    linear: tuple[int, ...]
    """First rows of the ranges that enter as they are: adaLN's shift, an attention's values."""
    one_plus: tuple[int, ...] = ()
    """First rows of the ranges that enter as 1 + output: adaLN's scale."""


@dataclass(frozen=True)
class Fold:
    """Where a scale of an input's channels can go, exactly: the factor into all sources, its inverse into all readers.

    A layer left out on either side changes what the network computes: the text of a joint attention makes tokens of the
    image's output with its values, and one projection of a text is read by the keys and values of all blocks. Left out:
    readers of which only some columns read the input, and values that several heads share.
    """

    sources: tuple[Source, ...]
    """What makes the input, token by token or in weighted means of tokens: one, or the values of image and text."""
    readers: tuple[str, ...]
    """Every site that reads what the sources make, in forward order."""
    mixing: int = 1
    """Channels, in runs of this many, that may be mixed too: a head's width for values, 1 where only scales fold."""
    shifts: bool = True
    """Whether a shift of the input folds too: not where a gate multiplies what the sources make."""

    @property
    def layers(self) -> str:
        """The sources' paths, as one text; a layer that is the source of two streams comes once."""
        return ", ".join(dict.fromkeys(source.layer for source in self.sources))


Guided = Literal["one_call", "two_calls", "two_calls_normed", "embedded"]
"""Condition and null condition in one batch; one after the other, perhaps with the norms of the conditional prediction;
or one call of a network that reads the scale.
"""


@dataclass(frozen=True)
class Turn:
    """One of several networks of a model, each of which runs at its own timesteps alone."""

    name: str
    """Its module path in the denoiser."""
    model: "DiffusionModel"
    """The model with the sites, attentions and folds of this network alone; the denoiser is that of all."""
    first: float = -inf
    """The least timestep that it takes."""
    end: float = inf
    """The least one above those that it takes."""

    def takes(self, t: Real[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
        """Which of the timesteps are its own."""
        return (t >= self.first) & (t < self.end)


class DiffusionModel(Protocol):
    """A loaded model in evaluation mode; all of qdit uses diffusion models through this interface."""

    denoiser: nn.Module
    latent_shape: tuple[int, ...]
    """Of one sample: (C, h, w)."""
    num_classes: int
    null_class: int
    """The label that stands for no class, in guidance."""
    guided: Guided
    """How its stock pipeline guides."""
    time_unit: float
    """How many of the scheduler's timesteps one of those is that the stock pipeline gives the network."""
    told_guidance: float
    """The scale that every call is told, where `guided` is embedded; see `qdit.sampler.sampler.Sampler.inform`."""
    image_size: int
    """Pixels along a side, the shorter one."""
    modality: str
    """Either `image` or `video`: which metrics may be taken of it."""
    framewise: bool
    """Whether each frame of a clip is decoded by itself, so that a clip may be decoded some frames at a time."""
    frames_per_second: int
    """At which clips are shown."""
    learned_variance: bool
    """Whether the network puts out 2C channels: the noise, and the logits of the variance."""
    device: torch.device
    dtype: torch.dtype
    clock: Clock
    """Shows the layers the timesteps that `denoise` was given."""

    def sites(self) -> list[Site]:
        """Every linear layer (and the patch-embedding convolution) in forward order."""
        ...

    def attentions(self) -> list[Attention]:
        """Every attention in forward order."""
        ...

    def folds(self) -> list[Fold]:
        """Where changes of inputs can be folded; inputs that no fold makes are changed at run time."""
        ...

    def turns(self) -> list[Turn]:
        """The networks that take turns over the timesteps, the noisiest first; none where one network always runs."""
        ...

    def attended(self, site: str, y: Int[Tensor, " B"]) -> Bool[Tensor, "B rows"] | None:
        """Which rows of a site's input anything depends on, for samples with conditions `y`; None: on all of them.

        Rows behind a prompt's end are computed, and a mask of the attention hides them: no statistic may count them.
        Sites are layers, and an attention's queries, keys and values, whose rows are tokens.
        """
        ...

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule of the training, in diffusers' keys."""
        ...

    def set_timesteps(self, scheduler: Any, steps: int) -> None:
        """Have a scheduler of diffusers take so many steps, as the stock pipeline does."""
        ...

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O h w"]:
        """One call of the network: O is C, or 2C where the variance is learned."""
        ...

    def decode(self, latents: Float[Tensor, "B C h w"]) -> UInt8[Tensor, "B 3 H W"]:
        """Decode latents to pixels."""
        ...
