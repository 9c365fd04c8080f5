"""What `range=hessian` searches of a fit: which grids, their numbers on disk, and in the quantizers.

What was found for a segment of the network is saved, and is read back by the same fit after a kill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qdit.calibration.blocks import Segment
from qdit.errors import UserError
from qdit.fit import Fit
from qdit.hessian.grids import numbers_of, searched, set_numbers
from qdit.hessian.linears import Found
from qdit.hessian.operands import inside, searched_operands
from qdit.hessian.rule import rules
from qdit.model.base import Attention, Site
from qdit.nn.linear import Shared
from qdit.quant.grid import RowGrid
from qdit.quant.spec import as_rows
from qdit.storage.shelf import Shelf


@dataclass(frozen=True)
class SearchedGrids:
    """The grids of a fit that are searched."""

    fit: Fit

    def rounder(self, site: Site) -> nn.Module | None:
        """The quantizer of a site's input, without the transform's change before it."""
        if self.fit.policy[site.name].activation is None:
            return None
        module = self.fit.quantizers[site.name]
        module = module.quantizer if isinstance(module, Shared) else module
        return module[-1] if isinstance(module, nn.Sequential) and site.name in self.fit.rewrite.inputs else module

    def shapes(self, readers: Sequence[Site]) -> dict[str, tuple[int, ...]]:
        """What is searched for the readers of an input, with the shapes of the factors that are saved."""
        weight, inputs, _ = rules(self.fit.recipe)
        shapes: dict[str, tuple[int, ...]] = {}
        if weight is not None:
            for site in readers:
                if self.fit.rounds(site):
                    rows = as_rows(self.fit.weight_of(site), self.fit.weight_spec(site)).shape[0]
                    shapes[f"{site.name}.weight"] = (rows, 1)
        if inputs is not None and (module := searched(self.rounder(readers[0]))) is not None:
            shapes[f"{readers[0].name}.input"] = tuple(numbers_of(module).shape)
        return shapes

    def attentions(self, part: Segment) -> list[Attention]:
        """The attentions of a segment whose operands are searched."""
        if rules(self.fit.recipe)[2] is None:
            return []
        return [a for a in inside(self.fit.model.attentions(), part) if searched_operands(self.fit, a)]

    @property
    def shelf(self) -> Shelf | None:
        """Where what was found for segments is saved, if anywhere."""
        return None if self.fit.folder is None else Shelf.of(self.fit.folder) / "grids"

    def save(self, part: Segment, found: Found) -> None:
        """Save what was found for a segment."""
        if self.shelf is not None:
            self.shelf.save(part.name, found)

    def load(self, part: Segment) -> Found | None:
        """What an earlier run saved of a segment, None if there is nothing; it may have nothing to search.

        Raises:
            UserError: the file is damaged or of another model.
        """
        expected = {
            key: shape for readers in self.fit.by_input(part.sites) for key, shape in self.shapes(readers).items()
        }
        for attention in self.attentions(part):
            expected |= {f"{site}.operand": shape for site, shape in searched_operands(self.fit, attention).items()}
        if not expected:
            return {}
        if self.shelf is None or (found := self.shelf.load(part.name)) is None:
            return None
        if {key: tuple(tensor.shape) for key, tensor in found.items()} != expected:
            path = self.shelf.path(part.name)
            raise UserError(f"{path} holds ranges of another model than this {part.name}; delete it")
        return found

    def apply(self, found: Mapping[str, Tensor]) -> dict[str, RowGrid]:
        """The grids of weights; the quantizers of inputs and operands get their numbers."""
        grids: dict[str, RowGrid] = {}
        for site in self.fit.sites:
            if (factors := found.get(f"{site.name}.weight")) is not None:
                start = self.fit.grid(site)
                grids[site.name] = start.scaled(factors.to(start.scale))
            module = searched(self.rounder(site))
            if (numbers := found.get(f"{site.name}.input")) is not None and module is not None:
                set_numbers(module, numbers)
        for key, numbers in found.items():
            site, _, kind = key.rpartition(".")
            if kind == "operand" and (module := searched(self.fit.attention[site])) is not None:
                set_numbers(module, numbers)
        return grids
