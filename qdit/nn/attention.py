"""An attention processor that hands each operand to a module of its own: a quantizer or an observer.

An attention is softmax(q kᵀ / √d) v. diffusers computes it in one fused call, in which the probabilities never appear;
`Attend` computes the same step by step and hands each operand, the scaled queries, the keys, the values and the
probabilities, to a module of its own, which may round it to any code-book: with grids per tensor or per head, uniform
or not, or dependent on time. The scores q kᵀ before the softmax stay in full precision.

It takes the place of diffusers' attention processor (`qdit.nn.replace.replaced`); diffusers itself is not edited. Left
out: normalisations of the attention's own input and image-shaped inputs, which transformers do not have.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


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
