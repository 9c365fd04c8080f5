"""The temporal unit: what depends on timestep and condition alone learns together (TFMQ-DM, arXiv 2311.16503).

The embedders of timestep and condition, and the layers behind them that modulate every block and the final one, see one
row a sample. Rounded with their blocks, each would learn for the output of that block; here they learn first, for the
squared errors of all modulations together, over the timesteps of the sampler, of which there are few.

They are run by the network's own forward, with blocks that stop where their modulation is known and return blanks
(`qdit.calibration.replay`): that costs the embedders, the modulations and the final layer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qdit.calibration import CalibrationData
from qdit.calibration.replay import Reached, Structure, standing_in, structure
from qdit.model.base import DiffusionModel, Site
from qdit.nn.outputs import outputs_of
from qdit.rounding.reconstruction.targets import Task


def temporal(sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that see one row a sample: embedders of timestep and condition, and modulations."""
    return [site for site in sites if site.tokens == 1]


def points_over_time(data: CalibrationData) -> CalibrationData:
    """As many points as there are, or as the sampler has timesteps: each timestep in turn, with the conditions in turn.

    Every other condition may be the null condition, and a timestep comes with both: an even number of timesteps would
    meet the same half again, so that each pass over them begins one condition later.

    >>> t, y = torch.tensor([9, 9, 5]), torch.tensor([7, 1, 2])
    >>> data = CalibrationData(torch.zeros(3, 4, 8, 8), t, y, batch_size=2, visited=[1, 5])
    >>> points_over_time(data).t, points_over_time(data).y
    (tensor([1, 5, 1]), tensor([7, 1, 7]))
    """
    timesteps, count = data.t.new_tensor(data.timesteps), len(data.t)
    numbers = torch.arange(max(count, len(timesteps)))
    late = numbers // len(timesteps) if len(timesteps) % 2 == 0 else 0
    conditions = (numbers + late) % count
    t = timesteps[numbers % len(timesteps)]
    return CalibrationData(data.x[numbers % count], t, data.y[conditions], data.batch_size)


class Modulations:
    """The outputs of all modulations of a network, as it is when called.

    Args:
        model: of which the blocks' structure is taken in one forward pass.
        data: of which one point is shown.
    """

    @torch.no_grad()
    def __init__(self, model: DiffusionModel, data: CalibrationData) -> None:
        self.model, sites = model, model.sites()
        own = temporal(sites)
        self.shown = [site.name for site in own if site.role != "embedder"] or [site.name for site in own]
        self.last = {site.path: site.name for site in own if site.path is not None}
        self.structures: dict[str, Structure] = {}
        with ExitStack() as stack:
            for path in dict.fromkeys(site.path for site in sites if site.path is not None):
                block = model.denoiser.get_submodule(path)
                stack.callback(block.register_forward_hook(partial(self._note, path)).remove)
            self.run(data, slice(0, 1))

    def _note(self, path: str, _block: nn.Module, _inputs: Any, output: Any) -> None:
        self.structures[path] = structure(output, 1)

    def run(self, data: CalibrationData, points: slice | Tensor) -> Tensor:
        """The network's output for some points."""
        device = self.model.device
        x, t, y = (part[points].to(device) for part in (data.x, data.t, data.y))
        return self.model.denoise(x.to(self.model.dtype), t, y)

    def __call__(self, data: CalibrationData, points: Tensor) -> Float[Tensor, "points values"]:
        """The modulations for some points, one behind the other, float32."""
        network = self.model.denoiser
        forwards = {path: network.get_submodule(path).forward for path in self.structures}

        def stand(path: str, *args: Any, **kwargs: Any) -> Any:
            if path in self.last:
                with suppress(Reached):
                    forwards[path](*args, **kwargs)
            return self.structures[path].blank(len(points), self.model.device)

        calls: Mapping[str, Callable[..., Any]] = {path: partial(stand, path) for path in self.structures}
        with ExitStack() as stack:
            seen = stack.enter_context(outputs_of({name: network.get_submodule(name) for name in self.shown}))
            for name in self.last.values():
                stack.callback(network.get_submodule(name).register_forward_hook(_stop).remove)
            stack.enter_context(standing_in(network, calls))
            self.run(data, points)
        return torch.cat([seen[name].float().reshape(len(points), -1) for name in self.shown], 1)


def _stop(*_: Any) -> None:
    raise Reached


@torch.no_grad()
def temporal_task(model: DiffusionModel, data: CalibrationData) -> Task:
    """What the temporal unit has to reconstruct; the network is in full precision now, and not when it is predicted."""
    modulations, own = Modulations(model, data), points_over_time(data)
    target = torch.cat([modulations(own, rows).cpu() for rows in torch.arange(len(own.t)).split(data.batch_size)])
    return Task(partial(modulations, own), target)
