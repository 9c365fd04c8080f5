"""A layer's weight as the matrix that multiplies rows, of a patch embedding too, and its inputs as these rows."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Patch = int | tuple[int, ...]
"""The side of an image's patches, or frames, height and width of a clip's."""


def patch_size(layer: nn.Module) -> Patch | None:
    """The patches that a patch embedding multiplies, None for a layer that multiplies its input's rows."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size[0]
    return tuple(layer.kernel_size) if isinstance(layer, nn.Conv3d) else getattr(layer, "patch", None)


def patches(x: Float[Tensor, "B C *places"], patch: Patch) -> Float[Tensor, "B patches values"]:
    """The patches of images [B, C, h, w] or clips [B, C, F, h, w] as rows, as the weight [out, values] reads them."""
    if isinstance(patch, int):
        return F.unfold(x, patch, stride=patch).transpose(1, 2)
    for place, side in enumerate(patch):
        x = x.unflatten(2 + 2 * place, (-1, side))  # [B, C, f, patch, h, patch, w, patch]
    places = range(2, x.ndim, 2)
    return x.permute(0, *places, 1, *(place + 1 for place in places)).flatten(len(places) + 1).flatten(1, -2)


def by_patches(x: Tensor, patch: Patch | None, product: Callable[[Tensor], Tensor]) -> Tensor:
    """A product of rows [..., in] -> [..., out]; with patches of [B, C, *places] -> [B, out, *places / patch]."""
    if patch is None:
        return product(x)
    tokens = product(patches(x, patch))
    sides = [patch] * 2 if isinstance(patch, int) else patch
    return tokens.transpose(1, 2).unflatten(2, [n // side for n, side in zip(x.shape[2:], sides, strict=True)])


def matrix(layer: nn.Module) -> Tensor:
    """A layer's weight as [out, in]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)
