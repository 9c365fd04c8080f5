"""Wan 2.2 A14B (Wan Team, arXiv 2503.20314): text to video by two networks of Wan 2.1's kind, which take turns.

`transformer` has the noisy timesteps, from `boundary_ratio` of the training's upwards, and lays out the clip;
`transformer_2` has those below and finishes it. A call runs one of them. Both are in one module under the names of the
pipeline's folders, so that a site is named by its network, and one checkpoint holds both; each is fitted as a model of
its own, on the calibration points of its timesteps (`qdit.fitting`). Left out, and refused: searches, whose budget
would have to be shared between networks that do not run together; transforms that differ between ranges of timesteps;
calibration by density; export. Left out besides: what `qdit.model.wan` leaves out.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Fold, Site, Turn
from qdit.model.files import read_config
from qdit.model.loaded import value_folds
from qdit.model.loaded_text import projection_folds
from qdit.model.roles import NETWORKS
from qdit.model.wan import LoadedWan, Wan


class Networks(nn.ModuleDict):
    """Two networks by name. It holds them, and is not called: the adapter calls the one whose turn it is.

    Args:
        networks: of equal shapes.
        boundary_ratio: the least timestep of the first, as a share of the training's.
    """

    def __init__(self, networks: Mapping[str, nn.Module], boundary_ratio: float) -> None:
        super().__init__(dict(networks))
        self.boundary_ratio = boundary_ratio

    @property
    def config(self) -> Any:
        """That of the first, whose sizes are those of both."""
        return self[NETWORKS[0]].config


class LoadedWanA14B(LoadedWan):
    """Both networks ready to run: see `qdit.model.base.DiffusionModel`; latents are [C, frames, h, w]."""

    usual = 21, 90, 160
    alone: bool = False
    """Whether this is the model of a turn: what is in one network."""

    @property
    def boundary(self) -> float:
        """The least timestep of the first network."""
        networks: Any = self.denoiser
        return networks.boundary_ratio * self.scheduler_config().get("num_train_timesteps", 1000)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """See `Loaded`: those of both networks; the second's blocks are numbered behind the first's."""
        sites: list[Site] = []
        attentions: list[Attention] = []
        for name in NETWORKS:
            blocks = len({site.path for site in sites} - {None})
            own, products = super().structure(denoiser.get_submodule(name))
            sites += [_site_in(name, site, blocks) for site in own]
            attentions += [replace(a, name=f"{name}.{a.name}", block=_later(a.block, blocks)) for a in products]
        return sites, attentions

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """See `LoadedText`, network by network."""
        folds: list[Fold] = []
        for name in NETWORKS:
            own = _inside(name, sites)
            folds += value_folds(own, self._attentions) + projection_folds(f"{name}.{self.projection}", own)
        return folds

    def turns(self) -> list[Turn]:
        """See `DiffusionModel`."""
        if self.alone:
            return []
        first, second = NETWORKS
        return [
            Turn(first, self._alone(first), first=self.boundary),
            Turn(second, self._alone(second), end=self.boundary),
        ]

    def _alone(self, name: str) -> "LoadedWanA14B":
        """This model with what is in one of its networks."""
        made = copy(self)
        made.alone = True
        made._sites, made._attentions = _inside(name, self._sites), _inside(name, self._attentions)
        made._folds = [fold for fold in self._folds if fold.readers[0].startswith(f"{name}.")]
        return made

    def network_at(self, t: Real[Tensor, " B"]) -> Any:
        """See `LoadedWan`; the timesteps are all of one network."""
        return self.denoiser.get_submodule(NETWORKS[0] if bool((t >= self.boundary).all()) else NETWORKS[1])

    def denoise(
        self, x: Float[Tensor, "B C F h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C F h w"]:
        """See `LoadedWan`; a batch whose timesteps are of both networks is divided."""
        noisy = t >= self.boundary
        if bool(noisy.all()) or not bool(noisy.any()):
            return super().denoise(x, t, y)
        parts = [mask.nonzero().flatten() for mask in (noisy, ~noisy)]
        made = torch.cat([LoadedWan.denoise(self, x[rows], t[rows], y[rows]) for rows in parts])
        return made[torch.cat(parts).argsort()]


def _site_in(network: str, site: Site, blocks: int) -> Site:
    """A network's site as one of the module that holds it, behind so many blocks."""
    name, path, reads = (value and f"{network}.{value}" for value in (site.name, site.path, site.reads))
    return replace(site, name=str(name), path=path, reads=reads, block=_later(site.block, blocks))


def _later(block: int | None, blocks: int) -> int | None:
    return None if block is None else block + blocks


def _inside(network: str, places: list[Any]) -> list[Any]:
    """The sites, or attentions, of a network."""
    return [place for place in places if place.name.startswith(f"{network}.")]


@dataclass(kw_only=True)
class WanA14B(Wan):
    """Which checkpoint, the size of its clips, and where the second network takes over.

    Args:
        boundary_ratio: the least timestep of the first network, as a share of the training's; that of the pipeline.
    """

    loaded = LoadedWanA14B
    networks = NETWORKS
    boundary_ratio: Annotated[float, Gt(0), Lt(1)] = 0.875

    def boundary(self) -> float:
        """See `Wan`."""
        return self.boundary_ratio

    def protocol(self) -> str:
        """See `TextModel`."""
        return f"{super().protocol()}|boundary={self.boundary_ratio:g}"

    def checked_transformer(self, root: Path) -> None:
        """See `Wan`.

        Raises:
            UserError: the two are not of equal shapes, besides.
        """
        super().checked_transformer(root)
        one, other = ({k: v for k, v in read_config(root / n).items() if k[0] != "_"} for n in NETWORKS)
        if unlike := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
            raise UserError(
                f"{root}: transformer and transformer_2 differ in {', '.join(unlike)}; two networks that take turns "
                "must have equal configs"
            )

    def network(self, root: Path, make: Callable[[Path], nn.Module]) -> nn.Module:
        """See `TextModel`."""
        return Networks({name: make(root / name) for name in NETWORKS}, self.boundary_ratio)
