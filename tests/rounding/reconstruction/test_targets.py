"""What a block learns from: the inputs that the rounded network gives it, also those of the embedders before it."""

import torch
from helpers.adaround_parts import points
from torch import nn

from qdit.calibration.blocks import segments
from qdit.nn.linear import QuantLinear
from qdit.nn.replace import replaced
from qdit.rounding.reconstruction.targets import Targets
from qdit.rounding.reconstruction.units import list_units


def coarse(layer: nn.Module) -> QuantLinear:
    """The layer with a weight that is visibly another."""
    changed = QuantLinear(layer, None, None)
    changed.weight = (4 * changed.weight).round() / 4
    return changed


def test_each_block_learns_on_what_the_rounded_network_gives_it(tiny_model):
    data, path = points(6), "pos_embed.proj"
    sites = tiny_model.sites()
    parts = segments(sites, {site.name for site in sites})
    targets = Targets(tiny_model, data, parts)
    embedder = {path: coarse(tiny_model.denoiser.get_submodule(path))}
    targets.advance(parts[0], embedder)
    units = list_units(parts, lambda one, other: False)
    for part, members in zip(parts[1:3], units[1:3], strict=True):
        block = tiny_model.denoiser.get_submodule(part.block)
        seen = []
        handle = block.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        with replaced(tiny_model.denoiser, embedder):
            tiny_model.denoise(data.x, data.t, data.y)
        handle.remove()
        task = targets.task(members[-1], {})
        with targets.installed({}), torch.no_grad():
            # Sums may come in another order on some processors, which is a thousandth of what the embedder changed.
            torch.testing.assert_close(task.predict(torch.arange(6)), seen[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(seen[0], task.target, atol=1e-3)
        targets.advance(part, {})
