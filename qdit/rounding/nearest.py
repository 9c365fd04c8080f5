"""Round to nearest: every weight takes the closest code of its grid, independently of all others."""

from dataclasses import dataclass

from qdit.fit import Fit
from qdit.quant.grid import Rounded


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Round to nearest (half to even)."""

    needs_calibration = False

    def weights(self, fit: Fit) -> dict[str, Rounded]:
        """The rounded weight [out, in] of every site whose weight is quantized."""
        rounded = {}
        for site in fit.sites:
            if fit.rounds(site):
                rounded[site.name] = Rounded.of(fit.weight_of(site).float(), fit.grid(site), fit.weight_spec(site))
        return rounded
