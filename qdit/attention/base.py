"""What a fit asks of an attention part, and the attention that shows its operands.

An attention is softmax(q kᵀ / √d) v. diffusers computes it in one fused call, in which the probabilities never appear;
`Attend` computes the same step by step and hands each operand, the scaled queries, the keys, the values and the
probabilities, to a module of its own, which may round it to any code-book: with grids per tensor or per head, uniform
or not, or dependent on time. The scores q kᵀ before the softmax stay in full precision.

It takes the place of diffusers' attention processor, through `qdit.nn.linear.replaced`; diffusers itself is not edited.
Left out: normalisations of the attention's own input and image-shaped inputs, which transformers do not have.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.activation import TimeGroups
from qdit.calibration.calibration import CalibrationData
from qdit.calibration.observers import GroupedReservoirs
from qdit.model.base import Attention, DiffusionModel
from qdit.nn.clock import Clock
from qdit.nn.linear import Observed, replaced
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Groups


class AttentionPart(Protocol):
    """How the operands of attentions are quantized. Config only: the data arrive as arguments."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `quantizer` needs values."""
        ...

    def specs(self, bits: int, time: TimeGroups) -> dict[str, QuantSpec]:
        """The spec of each operand (`qdit.model.base.OPERANDS`) that is quantized where inputs have `bits` bits.

        Args:
            bits: of inputs.
            time: groups of timesteps, of operands too.
        """
        ...

    def quantizer(
        self, operand: str, spec: QuantSpec, values: Sequence[Tensor] | None, groups: Groups, clock: Clock
    ) -> nn.Module:
        """The module that rounds one operand [B, heads, rows, channels] and keeps its shape.

        Args:
            operand: which one (`qdit.model.base.OPERANDS`).
            spec: of `specs`.
            values: a sample of its values over the calibration data for each group of timesteps, extremes included,
                [n], or [heads, n] where the granularity is `head`; None where the spec is dynamic.
            groups: of timesteps.
            clock: shows the timestep.
        """
        ...


class Attend(nn.Module):
    """An attention processor for diffusers' `Attention`: the same result, with each operand given to a module.

    Args:
        q, k, v, probs: change an operand and keep its shape; None passes it.
    """

    def __init__(
        self,
        q: nn.Module | None = None,
        k: nn.Module | None = None,
        v: nn.Module | None = None,
        probs: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.probs = q, k, v, probs

    def forward(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B tokens channels"],
        encoder_hidden_states: Float[Tensor, "B keys other"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "B tokens channels"]:
        """The attention's output; the names of the arguments are diffusers'.

        Args:
            attn: diffusers' attention, which owns the linear layers.
            hidden_states: what queries are made of.
            encoder_hidden_states: what keys and values are made of; None for `hidden_states`.
            attention_mask: added to the scores, in diffusers' shapes.
        """
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, heads, tokens or keys, head_dim]
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        q = attn.norm_q(q) if attn.norm_q is not None else q
        k = attn.norm_k(k) if attn.norm_k is not None else k
        q = q * attn.scale
        q = self.q(q) if self.q is not None else q
        k = self.k(k) if self.k is not None else k
        v = self.v(v) if self.v is not None else v
        probs = self.probabilities(attn, q, k, attention_mask)
        output = (probs @ v).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](output))

    def probabilities(
        self, attn: Any, q: Tensor, k: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "B heads tokens keys"]:
        """Softmax of the scores, rounded."""
        scores = q @ k.mT
        if mask is not None:
            added = attn.prepare_attention_mask(mask, k.shape[2], len(k))  # [B · heads, 1 or tokens, keys]
            scores = scores + added.view(len(k), attn.heads, -1, added.shape[-1])
        probs = scores.softmax(-1)
        return self.probs(probs) if self.probs is not None else probs


@contextmanager
def watching_operands(
    model: DiffusionModel, attentions: Sequence[Attention], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(site, operand's values)` whenever an attention runs, in full precision; it is as it was afterwards."""
    shown = {
        a.processor: Attend(**{o: Observed(None, partial(see, site)) for o, site in a.sites.items()})
        for a in attentions
    }
    with replaced(model.denoiser, shown):
        yield


@torch.no_grad()
def operand_values(
    model: DiffusionModel,
    attentions: Sequence[Attention],
    data: CalibrationData,
    sites: Mapping[str, Groups],
    by_head: Container[str] = (),
) -> dict[str, list[Tensor]]:
    """A sample of the values of operands over the calibration data, extremes included, by group of timesteps.

    Args:
        model: in full precision.
        attentions: whose operands.
        data: the calibration points.
        sites: of the operands, with the groups of timesteps of each.
        by_head: sites whose heads are told apart, [heads, n]; others have one row of values, [n].
    """
    heads = {site: a.heads if site in by_head else 1 for a in attentions for site in a.sites.values()}
    reservoirs = {site: GroupedReservoirs(groups, heads[site]) for site, groups in sites.items()}
    shown: list[Tensor] = []

    def see(site: str, x: Tensor) -> None:
        if site in reservoirs:
            reservoirs[site].add(x, shown[0])

    with watching_operands(model, [a for a in attentions if reservoirs.keys() & a.sites.values()], see):
        for x, t, y in data.batches(model):
            shown[:] = [t]
            model.denoise(x, t, y)
    return {site: reservoir.values() for site, reservoir in reservoirs.items()}


def processors(attentions: Sequence[Attention], quantizers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """What computes the attentions that have a quantizer, by the path where `replaced` puts it."""
    made: dict[str, nn.Module] = {}
    for attention in attentions:
        own = {o: quantizers[site] for o, site in attention.sites.items() if site in quantizers}
        if own:
            made[attention.processor] = Attend(**own).eval()
    return made
