"""What the units of a reconstruction have learned: kept in the quantized layers, saved, and read back.

A unit's file holds codes, scales and zero points of its weights (`qdit.rounding.resume`) and its activation step sizes,
as `<path>.step`. It is written whole or not at all.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from qdit.fit import Fit
from qdit.nn.linear import QuantLinear
from qdit.nn.quantizers import StaticQuantizer
from qdit.quant.grid import Rounded
from qdit.rounding.reconstruction.ste import quantizers
from qdit.rounding.reconstruction.units import Unit
from qdit.rounding.resume import load_named, save_named


class Finished:
    """The units of a fit that have learned.

    Args:
        fit: what is fitted; its static quantizers get the step sizes that were learned.
        shape: of what a static quantizer learns.
    """

    def __init__(self, fit: Fit, shape: Callable[[StaticQuantizer], tuple[int, ...]]) -> None:
        self.fit, self.shape = fit, shape
        self.weights: dict[str, Rounded] = {}
        self.sites: set[str] = set()
        branches = [b for layer in fit.rewrite.layers.values() if (b := getattr(layer, "branch", None)) is not None]
        self.exact = {part for module in (*fit.rewrite.inputs.values(), *branches) for part in module.modules()}
        """Parts of a transform, which round nothing that learns."""

    def layers(self, unit: Unit, like: str | None = None) -> dict[str, nn.Module]:
        """What is installed for a unit, its weights not rounded; `like`: for the unit's copy of that name instead."""
        names = [site.name for site in unit.sites] if like is None else [like]
        made: dict[str, nn.Module] = {name: self.layer(name) for name in names}
        if unit.layer is None and unit.segment.block is not None:
            made |= self.fit.processors(unit.segment.block)
        return made

    def layer(self, name: str) -> nn.Module:
        """The quantized layer of a site, with its weight rounded if that is known by now."""
        full = self.fit.model.denoiser.get_submodule(name)
        return QuantLinear(full, self.weights.get(name), self.fit.quantizers.get(name)).eval()

    def static(self, layers: Mapping[str, nn.Module]) -> dict[str, StaticQuantizer]:
        """The static quantizers inside installed layers, by path."""
        return {path: m for path, m in quantizers(layers, self.exact) if isinstance(m, StaticQuantizer)}

    def restore(self, unit: Unit) -> bool:
        """Whether an earlier run finished a unit, which is then kept; one with nothing to learn is always finished.

        Raises:
            UserError: the file is damaged or of another model.
        """
        steps = {f"{path}.step": m for path, m in self.static(self.layers(unit)).items()}
        sites = [site for site in unit.sites if self.fit.rounds(site)]
        if not sites and not steps:
            self.keep(unit, {}, {})
            return True
        found = load_named(self.fit, unit.name, sites, {key: self.shape(m) for key, m in steps.items()})
        if found is None:
            return False
        self.keep(unit, found[0], {key.removesuffix(".step"): step for key, step in found[1].items()})
        return True

    def save(self, unit: Unit, rounded: Mapping[str, Rounded], steps: Mapping[str, Tensor]) -> None:
        """Save a finished unit, whole or not at all."""
        save_named(self.fit.folder, unit.name, rounded, {f"{place}.step": step for place, step in steps.items()})

    def keep(self, unit: Unit, rounded: Mapping[str, Rounded], steps: Mapping[str, Tensor]) -> None:
        """Keep a finished unit: its weights, and its step sizes in the quantizers; also for copies of its layer."""
        self.weights.update(rounded)
        static = self.static(self.layers(unit))
        for path, step in steps.items():
            _put(static[path], step)
        for twin, original in unit.twins.items():
            self.weights |= {twin: rounded[original]} if original in rounded else {}
            static = self.static(self.layers(unit, like=twin))
            for path, step in steps.items():
                if path.startswith(f"{original}."):
                    _put(static[twin + path.removeprefix(original)], step)
        self.sites |= {site.name for site in unit.sites} | set(unit.twins)


def _put(module: StaticQuantizer, numbers: Tensor) -> None:
    """Give a static quantizer what it learned: its scale, or scale and zero point."""
    module.scale.copy_(numbers[:, :1])
    if numbers.shape[1] > 1:
        module.zero_point.copy_(numbers[:, 1:])
