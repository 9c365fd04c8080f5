"""Attentions whose operands are handed to modules: quantizers or observers; and the tap that reaches the operands.

An attention is softmax(q kᵀ / √d) v. diffusers computes it in one fused call, in which the probabilities never appear.
`Attend` takes the place of an attention's processor (`qdit.nn.replace`) and runs that very processor, with its rotary
embeddings, norms and whatever else a family has. Meanwhile a tap sees each `scaled_dot_product_attention` and computes
it step by step: the scaled queries, the keys, the values and the probabilities go through a module each, which may
round them to any code-book, with grids per tensor or per head, uniform or not, or dependent on time. The scores q kᵀ
before the softmax stay in full precision.

Long sequences are computed in chunks of queries, so that the probabilities are never whole in memory, if the module of
the probabilities does the same to a part of the queries as to all (`by_rows`). Left out: attentions without a softmax
(Sana's linear ones), and processors that call kernels of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WHOLE = 1 << 20
"""Queries times keys up to which an attention is never cut: 1024 × 1024, DiT's at 512 px."""
CHUNK = 1 << 26
"""Probabilities of a chunk, over all samples and heads: 256 MiB in float32."""


class Attend(nn.Module):
    """An attention processor: the one that it replaced, with each operand of its products given to a module.

    Args:
        q, k, v, probs: change an operand [rows, heads, tokens, channels] and keep its shape; None passes it. Rows are
            samples, or samples' frames one behind the other.
    """

    UNSAVED = ("original",)
    """Attributes that belong to the network in which it stands, and not to a checkpoint."""
    original: Any = None
    """The processor that it replaced."""

    def __init__(
        self,
        q: nn.Module | None = None,
        k: nn.Module | None = None,
        v: nn.Module | None = None,
        probs: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.probs = q, k, v, probs

    def replace(self, processor: Any) -> None:
        """Note the processor in whose place it is put; that of another `Attend` is the one which that one replaced."""
        vars(self)["original"] = processor.original if isinstance(processor, Attend) else processor  # no child of it

    @property
    def __call__(self) -> Callable[..., Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A module's call, with the original's signature: diffusers drops the keywords that a signature does not name.

        Raises:
            RuntimeError: it was not put in the place of a processor.
        """
        if self.original is None:
            raise RuntimeError("Attend runs the processor that it replaced: put it in place with qdit.nn.replace")

        @wraps(self.original.__call__)
        def call(*args: Any, **kwargs: Any) -> Any:
            return nn.Module.__call__(self, *args, **kwargs)

        return call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output; arguments are the original's.

        Raises:
            RuntimeError: the original computes no `scaled_dot_product_attention`, so that nothing was rounded.
        """
        tap = _Tap(self)
        with _native(self.original) as processor, tap:
            output = processor(*args, **kwargs)
        if not tap.products:
            raise RuntimeError(f"{type(self.original).__name__} calls no scaled_dot_product_attention to be quantized")
        return output

    def product(
        self,
        query: Float[Tensor, "*rows heads tokens channels"],
        key: Float[Tensor, "*rows kv_heads keys channels"],
        value: Float[Tensor, "*rows kv_heads keys other"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "*rows heads tokens other"]:
        """What `scaled_dot_product_attention` computes, step by step; its arguments, but for dropout.

        Raises:
            NotImplementedError: dropout.
        """
        if dropout_p:
            raise NotImplementedError("dropout in an attention with quantized operands")
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        tokens, keys = query.shape[-2], key.shape[-2]
        if is_causal:
            attn_mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril()
        q = query * (query.shape[-1] ** -0.5 if scale is None else scale)
        q = self.q(q) if self.q is not None else q
        k = self.k(key) if self.k is not None else key
        v = self.v(value) if self.v is not None else value
        size = self._chunk(q, keys)
        if size >= tokens:
            return self._probabilities(q, k, attn_mask) @ v
        parts = []
        for start in range(0, tokens, size):
            here = slice(start, start + size)
            mask = attn_mask
            if attn_mask is not None and attn_mask.ndim > 1 and attn_mask.shape[-2] > 1:
                mask = attn_mask[..., here, :]
            parts.append(self._probabilities(q[..., here, :], k, mask) @ v)
        return torch.cat(parts, -2)

    def _chunk(self, q: Tensor, keys: int) -> int:
        """How many queries are computed at once."""
        tokens = q.shape[-2]
        if tokens * keys <= WHOLE or not by_rows(self.probs):
            return tokens
        return max(1, CHUNK // (q[..., 0, 0].numel() * keys))

    def _probabilities(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax of the scores, rounded; where a mask leaves a query no key, zeros."""
        scores = q @ k.mT
        if mask is None:
            probs = scores.softmax(-1)
        elif mask.dtype == torch.bool:
            probs = scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0)
        else:
            probs = (scores + mask).softmax(-1)
        return self.probs(probs) if self.probs is not None else probs


def by_rows(module: Any) -> bool:
    """Whether a module does the same to some rows [..., rows, channels] of an operand as it does to them among all.

    None passes what it is given.
    """
    return module is None or bool(getattr(module, "by_rows", False))


class _Tap(TorchFunctionMode):
    """Gives every `scaled_dot_product_attention` to an `Attend`, and counts them."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend, self.products = attend, 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        self.products += 1
        return self.attend.product(*args, **kwargs or {})


@contextmanager
def _native(processor: Any) -> Iterator[Any]:
    """A processor that computes its products with torch, not with kernels that a tap cannot see."""
    with ExitStack() as stack:
        if hasattr(processor, "_attention_backend"):  # it goes through diffusers' choice of kernels
            from diffusers.models.attention_dispatch import attention_backend

            stack.enter_context(attention_backend("native"))
            if processor._attention_backend is not None:
                processor = copy(processor)
                processor._attention_backend = None
        yield processor
