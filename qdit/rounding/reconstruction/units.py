"""The units of block reconstruction: layers that learn together, against one output of the full-precision network.

PTQ4DiT (arXiv 2405.16005) has 32 in DiT-XL/2: the patch embedding and the two layers of the timestep embedder, a unit
each; 28 blocks; the final layer with its modulation. diffusers gives every block a copy of the embedder. Copies that
are equal learn once; those that differ (in a model trained with diffusers) are units of their own.

With a temporal unit (TFMQ-DM), embedders and modulations of all blocks are one unit in front of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qdit.calibration.blocks import Segment
from qdit.model.base import Site


@dataclass(frozen=True)
class Unit:
    """Sites that learn together: a single layer, the rest of a block, all that comes after the blocks; or temporal."""

    name: str
    """Of its file."""
    segment: Segment
    sites: list[Site]
    layer: str | None = None
    """The path of the one layer whose output is reconstructed; None: the segment's output is."""
    twins: dict[str, str] = field(default_factory=dict)
    """Layers equal to one of the unit's, with equal inputs, that get what it learns; by their paths, that layer's."""
    temporal: bool = False
    """Whether the outputs of all modulations are reconstructed (`qdit.rounding.reconstruction.temporal`)."""


def list_units(
    parts: Sequence[Segment], alike: Callable[[Site, Site], bool], temporal: Sequence[Site] = ()
) -> list[list[Unit]]:
    """The units of each segment, in the order in which they learn; a segment without sites has none.

    Args:
        parts: the segments of a network.
        alike: whether two layers are equal, and quantized alike, so that they may share a result if their inputs are
            equal; asked of the embedders of two blocks.
        temporal: sites that are a unit of their own, the first.
    """
    embedders: list[list[Unit]] = []
    left = [[site for site in part.sites if site not in temporal] for part in parts]
    found = [_units(part, sites, part is parts[0], embedders, alike) for part, sites in zip(parts, left, strict=True)]
    if temporal:
        found[0].insert(0, _temporal(parts[0], temporal, alike))
    return found


def _temporal(first: Segment, sites: Sequence[Site], alike: Callable[[Site, Site], bool]) -> Unit:
    """The temporal unit; of embedders that blocks have equal copies of, the first learn."""
    copies: dict[str, list[Site]] = {}
    for site in sites:
        if site.role == "embedder" and site.path is not None:
            copies.setdefault(site.path, []).append(site)
    twins: dict[str, str] = {}
    originals, *others = list(copies.values()) or [[]]
    for own in others:
        pairs = list(zip(originals, own, strict=False))
        if len(own) == len(originals) and all(alike(one, other) for one, other in pairs):
            twins |= {other.name: one.name for one, other in pairs}
    return Unit("temporal", first, [site for site in sites if site.name not in twins], twins=twins, temporal=True)


def _units(
    part: Segment,
    sites: Sequence[Site],
    before: bool,
    known: list[list[Unit]],
    alike: Callable[[Site, Site], bool],
) -> list[Unit]:
    if before:
        return [_single(part, site) for site in sites]
    single = [site for site in sites if part.block is not None and site.role == "embedder"]
    rest = [site for site in sites if site not in single]
    whole = [Unit(part.name, part, rest)] if rest else []
    for units in known:
        pairs = list(zip(units, single, strict=False))
        # Inputs are equal only if all layers before are.
        if len(units) == len(single) and all(alike(unit.sites[0], site) for unit, site in pairs):
            for unit, site in pairs:
                unit.twins[site.name] = unit.sites[0].name
            return whole
    singles = [_single(part, site) for site in single]
    if singles:
        known.append(singles)
    return [*singles, *whole]


def _single(part: Segment, site: Site) -> Unit:
    return Unit(site.name, part, [site], layer=site.name)
