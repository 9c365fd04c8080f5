"""Multi-region quantization (MRQ; PTQ4ViT's "twin uniform quantization"): two uniform grids share the codes.

Sources: TQ-DiT (arXiv 2502.04056), PTQ4ViT (arXiv 2111.12293). Of b bits, one says which region a value is in, and the
others say which of the region's H = 2^(b-1) steps it takes.

* Probabilities (outputs of softmax): fine steps s₁ below the border H s₁, coarse steps s₂ = 1/H above. With
  s₁ = 2^-m s₂, 0 ≤ m < b, the border is a multiple of both steps, the map is monotone, and changing region is a bit
  shift. The lists of m in PTQ4ViT and TQ-DiT go on to 19, where values between the border and s₂/2 become 0. On the
  paper's grid the value 1 = H s₂ saturates at 1 - 1/H; with `top="one_exact"` it gets a code that the coarse region
  does not need.
* Outputs of GELU: one step Δ₋ for values below 0, another Δ₊ for those above.

Every value goes to the nearest level. The papers' mask compares with the border before rounding, so that the last half
step below the border is sent one level too low. The released code of both papers has no mask at all: `ReleasedSum`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from qdit.errors import UserError
from qdit.quant.affine import SMALLEST_SCALE

Top = Literal["one_exact", "saturated"]
GELU_MINIMUM = 0.16997124254703522  # |min GELU|, as released; that of the tanh form is 0.170041


@dataclass(frozen=True)
class TwoRegion:
    """Two grids for values from 0 to 1: a fine one below the border, a coarse one above.

    Its numbers (quantization parameters) are the `fine` and `coarse` steps, and `last`, the greatest multiple of the
    coarse step. A uniform grid of b bits is the special case of equal steps with `last` = 2H - 1.
    """

    bits: int

    @property
    def half(self) -> int:
        """H, the number of steps in a region."""
        return 2 ** (self.bits - 1)

    def numbers(self, shift: int, top: Top) -> tuple[float, float, float]:
        """The three numbers of s₁ = 2^-shift s₂.

        Raises:
            UserError: with this shift the map would not be monotone.
        """
        if not 0 <= shift < self.bits:
            raise UserError(
                f"two regions of {self.bits} bits cannot have steps of the ratio 2^{shift}; exponents from 0 to "
                f"{self.bits - 1} are possible"
            )
        return 2.0**-shift / self.half, 1 / self.half, self.half - (top == "saturated")

    def uniform(self, greatest: float) -> tuple[float, float, float]:
        """The numbers of the unsigned uniform grid up to `greatest`."""
        step = max(greatest, SMALLEST_SCALE) / (2 * self.half - 1)
        return step, step, 2 * self.half - 1

    def encode(self, x: Float[Tensor, "*shape"], fine: Tensor, coarse: Tensor, last: Tensor) -> Float[Tensor, "*shape"]:
        """Codes of b bits as floats: the region is the top bit; step numbers of H or more keep their last bits."""
        low, upper = self._places(x, fine, coarse, last)
        return torch.where(low < self.half, low, self.half + upper % self.half)

    def decode(
        self, codes: Float[Tensor, "*shape"], fine: Tensor, coarse: Tensor, last: Tensor
    ) -> Float[Tensor, "*shape"]:
        """What the codes stand for."""
        upper = codes - self.half
        upper = torch.where(upper + self.half <= last, upper + self.half, upper)
        return torch.where(codes < self.half, codes * fine, upper * coarse)

    def __call__(
        self, x: Float[Tensor, "*shape"], fine: Tensor, coarse: Tensor, last: Tensor
    ) -> Float[Tensor, "*shape"]:
        """See `qdit.quant.books.Book`.

        >>> book = TwoRegion(4)
        >>> book(torch.tensor([0.01, 0.02, 0.4, 1.0]), *map(torch.tensor, book.numbers(2, "one_exact")))
        tensor([0.0000, 0.0312, 0.3750, 1.0000])
        """
        low, upper = self._places(x, fine, coarse, last)
        return torch.where(low < self.half, low * fine, upper * coarse)

    def _places(self, x: Tensor, fine: Tensor, coarse: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest multiples of both steps."""
        upper = torch.round(x / coarse)
        return torch.round(x / fine).clamp_(min=0), torch.minimum(upper, last, out=upper)


@dataclass(frozen=True)
class ReleasedSum:
    """What the released code computes for probabilities, for reproduction only: both regions are added, without a mask.

    Entries on either side of the split get about the split too much, so that a row of N drifts by N splits. The number
    is the split, a power of 1/2; the steps are split / (H - 1) and 1 / (H - 1).
    """

    bits: int

    def __call__(self, x: Float[Tensor, "*shape"], split: Tensor) -> Float[Tensor, "*shape"]:
        """See `qdit.quant.books.Book`."""
        last = 2 ** (self.bits - 1) - 1
        coarse = torch.round(torch.maximum(x, split).clamp(max=1) * last) / last
        fine = split / last
        return coarse + torch.round(torch.minimum(x.clamp(min=0), split) / fine) * fine


@dataclass(frozen=True)
class TwoSided:
    """A grid with one step below 0 and another above; the numbers are these steps. Codes go from -H to H - 1."""

    bits: int

    def encode(self, x: Float[Tensor, "*shape"], negative: Tensor, positive: Tensor) -> Float[Tensor, "*shape"]:
        """Codes as floats."""
        half = 2 ** (self.bits - 1)
        below, above = torch.round(x / negative).clamp_(-half, 0), torch.round(x / positive).clamp_(0, half - 1)
        return below.add_(above)

    def decode(self, codes: Float[Tensor, "*shape"], negative: Tensor, positive: Tensor) -> Float[Tensor, "*shape"]:
        """What the codes stand for."""
        return codes * torch.where(codes < 0, negative, positive)

    def __call__(self, x: Float[Tensor, "*shape"], negative: Tensor, positive: Tensor) -> Float[Tensor, "*shape"]:
        """See `qdit.quant.books.Book`.

        >>> TwoSided(4)(torch.tensor([-0.17, -0.04, 0.6, 9.0]), torch.tensor(0.02), torch.tensor(1.0))
        tensor([-0.1600, -0.0400,  1.0000,  7.0000])
        """
        half = 2 ** (self.bits - 1)  # one of the two is 0; twice as fast as choosing the step of each code
        below = torch.round(x / negative).clamp_(-half, 0).mul_(negative)
        return torch.round(x / positive).clamp_(0, half - 1).mul_(positive).add_(below)
