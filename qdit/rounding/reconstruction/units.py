"""The units of block reconstruction: layers that learn together, against one output of the full-precision network.

PTQ4DiT (arXiv 2405.16005) has 32 in DiT-XL/2: the patch embedding and the two layers of the timestep embedder, a unit
each; 28 blocks; the final layer with its modulation. diffusers gives every block a copy of the embedder. Copies that
are equal learn once; those that differ (in a model trained with diffusers) are units of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qdit.calibration.blocks import Segment
from qdit.model.base import Site


@dataclass(frozen=True)
class Unit:
    """Sites that learn together: a single layer, the rest of a block, or all that comes after the blocks."""

    name: str
    """Of its file."""
    segment: Segment
    sites: list[Site]
    layer: str | None = None
    """The path of the one layer whose output is reconstructed; None: the segment's output is."""
    twins: list[str] = field(default_factory=list)
    """Layers equal to the one layer, with equal inputs, that get what it learns."""


def list_units(parts: Sequence[Segment], alike: Callable[[Site, Site], bool]) -> list[list[Unit]]:
    """The units of each segment, in the order in which they learn; a segment without sites has none.

    Args:
        parts: the segments of a network.
        alike: whether two layers are equal, and quantized alike, so that they may share a result if their inputs are
            equal; asked of the embedders of two blocks.
    """
    embedders: list[list[Unit]] = []
    return [_units(part, part is parts[0], embedders, alike) for part in parts]


def _units(part: Segment, before: bool, known: list[list[Unit]], alike: Callable[[Site, Site], bool]) -> list[Unit]:
    if before:
        return [_single(part, site) for site in part.sites]
    single = [site for site in part.sites if part.block is not None and site.role == "embedder"]
    rest = [site for site in part.sites if site not in single]
    whole = [Unit(part.name, part, rest)] if rest else []
    for units in known:
        pairs = list(zip(units, single, strict=False))
        # Inputs are equal only if all layers before are.
        if len(units) == len(single) and all(alike(unit.sites[0], site) for unit, site in pairs):
            for unit, site in pairs:
                unit.twins.append(site.name)
            return whole
    singles = [_single(part, site) for site in single]
    if singles:
        known.append(singles)
    return [*singles, *whole]


def _single(part: Segment, site: Site) -> Unit:
    return Unit(site.name, part, [site], layer=site.name)
