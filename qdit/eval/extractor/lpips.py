"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1: how far two images are apart for a classifier.

A distance is a sum over five layers of Σ_c w_c (â_c - b̂_c)², its mean over places, of activations whose channels have
a norm of 1. The classifiers are torchvision's, with the published ImageNet weights; the w_c lie in the package `lpips`,
of which nothing else is used. Which of the two classifiers it is belongs to a number: papers differ in it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from qdit import compat as compat  # before torchvision
from qdit.errors import UserError
from qdit.eval.extractor.user_files import UserFile, load_strictly, read_state

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the colours, in [-1, 1], as published; the classifiers' own means and deviations, rounded."""
LEAST = 32


class Distance(nn.Module):
    """The distance of two images by some layers of a classifier."""

    def __init__(self, layers: nn.Sequential, taps: tuple[int, ...], heads: list[Float[Tensor, "1 C 1 1"]]) -> None:
        super().__init__()
        self.layers, self.taps = nn.ModuleList(layers)[: taps[-1] + 1], taps
        for number, head in enumerate(heads):
            self.register_buffer(f"head_{number}", head)
        for name, colours in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(colours).view(3, 1, 1))

    def forward(self, pairs: UInt8[Tensor, "b 2 3 H W"]) -> dict[str, Float[Tensor, "b 1"]]:
        """The distance of each pair."""
        x = (2 * (pairs.flatten(0, 1).float() / 255) - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        total = x.new_zeros(len(pairs))
        for number, layer in enumerate(self.layers.children()):
            x = layer(x)
            if number in self.taps:
                unit = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)).unflatten(0, (-1, 2))
                head = self.get_buffer(f"head_{self.taps.index(number)}")
                total = total + ((unit[:, 0] - unit[:, 1]).square() * head).sum(1).mean((1, 2))
        return {"distance": total[:, None]}


class LPIPSOf(UserFile):
    """Distances of pairs, which take the place of two neighbouring frames."""

    sizes = {"distance": 1}  # noqa: RUF012 - never written to
    window = 2
    library = "lpips"
    kind: ClassVar[str]
    """Its name in torchvision."""
    taps: ClassVar[tuple[int, ...]]
    """The rectified layers that are compared, as places in torchvision's `features`."""

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: a file, or the package, is missing, or of another network.
        """
        from torchvision import models

        path = self.path()
        network = load_strictly(getattr(models, self.kind)(weights=None), read_state(path), path)
        return Distance(network.get_submodule("features"), self.taps, self.heads())  # type: ignore[arg-type]

    def heads(self) -> list[Float[Tensor, "1 C 1 1"]]:
        """The weights of channels, of each layer.

        Raises:
            UserError: the package has none of version 0.1.
        """
        found = find_spec("lpips")
        assert found is not None, "looked for in the preflight"
        assert found.origin is not None
        path = Path(found.origin).parent / "weights" / "v0.1" / f"{self.name.removeprefix('lpips_')}.pth"
        state, names = read_state(path), [f"lin{number}.model.1.weight" for number in range(len(self.taps))]
        if missing := set(names) - state.keys():
            raise UserError(f"{path} has no {min(missing)}; pip install 'lpips>=0.1.4'")
        return [state[name] for name in names]

    def check(self, images: Tensor) -> None:
        """Refuse images of which the last layer would see nothing.

        Raises:
            UserError: a side is below 32 px.
        """
        if problems := too_small(min(images.shape[-2:])):
            raise UserError(*problems)


def too_small(side: int | None) -> list[str]:
    """A sentence about small images."""
    return [f"LPIPS needs images of {LEAST} px or more a side, these have {side}"] if side and side < LEAST else []


class LPIPSAlex(LPIPSOf):
    """By AlexNet, the authors' choice for distances."""

    name, kind, taps = "lpips_alex", "alexnet", (1, 4, 7, 9, 11)


class LPIPSVGG(LPIPSOf):
    """By VGG-16."""

    name, kind, taps = "lpips_vgg", "vgg16", (3, 8, 15, 22, 29)
