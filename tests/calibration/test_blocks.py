"""The walk, block by block, against whole passes: with one list of blocks, with two in turn, and with two in a row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from qdit.calibration import CalibrationData
from qdit.calibration.blocks import Segment, Walk, segments
from qdit.errors import UserError
from qdit.model.base import Site
from qdit.nn.clock import Clock
from qdit.storage.scratch import Scratch

SMALL = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8}
TEXT = {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 16, "norm_type": "ada_norm_single"}
JOINT = {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 24}


def r(rows, *shape, seed):
    """Values that a row has in every batch."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + int(n))) for n in rows]
    )


def dit(blocks):
    network = diffusers.DiTTransformer2DModel(**SMALL, num_layers=blocks, num_embeds_ada_norm=10)
    return network, lambda x, t, y: network(x, timestep=t, class_labels=y)


def pixart(blocks):
    network = diffusers.PixArtTransformer2DModel(**SMALL, **TEXT, num_layers=blocks, use_additional_conditions=False)

    def run(x, t, y):
        mask = (torch.arange(6) <= y[:, None]).long()
        given = {"encoder_attention_mask": mask, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return network(x, r(y, 6, 16, seed=1), timestep=t, **given)

    return network, run


def latte(blocks):
    network = diffusers.LatteTransformer3DModel(**SMALL, **TEXT, num_layers=blocks, video_length=3)

    def run(x, t, y):
        frames = torch.stack([x, 2 * x, x - 1], 2)
        return network(frames, timestep=t, encoder_hidden_states=r(y, 6, 16, seed=1))

    return network, run


def flux(blocks):
    shape = {"patch_size": 1, "in_channels": 16, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
    network = diffusers.FluxTransformer2DModel(**shape, **JOINT, num_layers=blocks, num_single_layers=blocks)

    def run(x, t, y):
        given = {"encoder_hidden_states": r(y, 12, 32, seed=1), "pooled_projections": r(y, 24, seed=2)}
        places = {"img_ids": torch.arange(48.0).view(16, 3), "txt_ids": torch.zeros(12, 3)}
        return network(x.reshape(len(x), 16, 16), timestep=t / 1000, **given, **places)

    return network, run


def flux2(blocks):
    shape = {"patch_size": 1, "in_channels": 16, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4)}
    more = {"num_attention_heads": 2, "joint_attention_dim": 32, "guidance_embeds": False}
    network = diffusers.Flux2Transformer2DModel(**shape, **more, num_layers=blocks, num_single_layers=blocks)

    def run(x, t, y):
        places = {"img_ids": torch.arange(64.0).view(16, 4), "txt_ids": torch.zeros(12, 4)}
        text = r(y, 12, 32, seed=1)
        return network(x.reshape(len(x), 16, 16), timestep=t / 1000, encoder_hidden_states=text, **places)

    return network, run


def sd3(blocks):
    shape = SMALL | {"out_channels": 4, "caption_projection_dim": 16, "pos_embed_max_size": 8}
    network = diffusers.SD3Transformer2DModel(**shape | JOINT, num_layers=blocks)

    def run(x, t, y):
        given = {"encoder_hidden_states": r(y, 12, 32, seed=1), "pooled_projections": r(y, 24, seed=2)}
        return network(x, timestep=t, **given)

    return network, run


def lumina(blocks):
    shape = {"hidden_size": 24, "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2}
    places = {"axes_dim_rope": (4, 2, 2), "axes_lens": (128, 128, 128), "cap_feat_dim": 16}
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": blocks}
    network = diffusers.Lumina2Transformer2DModel(**sizes, **shape, **places)

    def run(x, t, y):
        given = {"encoder_hidden_states": r(y, 12, 16, seed=1), "encoder_attention_mask": torch.ones(len(y), 12).bool()}
        return network(x, timestep=t / 1000, **given)

    return network, run


@dataclass
class Model:
    """As much of a model as a walk sees."""

    denoiser: nn.Module
    run: Callable[..., Any]
    clock: Clock = field(default_factory=Clock)
    device = torch.device("cpu")
    dtype = torch.float32

    def denoise(self, x, t, y):
        with self.clock.showing(t):
            return self.run(x, t, y).sample


def blocks_of(network):
    lists = [name for name, child in network.named_children() if isinstance(child, nn.ModuleList)]
    return [f"{name}.{n}" for name in lists for n in range(len(network.get_submodule(name)))]


def made(make, blocks=2):
    """A model, five points in batches of two, and what each block was given and returned, in order, and the end."""
    torch.manual_seed(0)
    model = Model(*make(blocks))
    model.denoiser.eval()
    data = CalibrationData(torch.randn(5, 4, 8, 8), torch.tensor([3, 900, 40, 500, 77]), torch.arange(5), 2)
    seen: dict[str, list] = {}

    def see(path, _, args, kwargs, output):
        seen.setdefault(path, []).append((args, kwargs, output))

    handles = [
        model.denoiser.get_submodule(path).register_forward_hook(partial(see, path), with_kwargs=True)
        for path in blocks_of(model.denoiser)
    ]
    ends = [model.denoise(*batch) for batch in data.batches(model)]
    for handle in handles:
        handle.remove()
    return model, data, seen, ends


def whole(paths):
    return [Segment("before", []), *(Segment(path, [], path) for path in paths), Segment("after", [])]


def equal(one, other):
    """The same nesting, values, and order of dimensions in memory."""
    pairs = [tree_flatten(values) for values in (one, other)]
    assert pairs[0][1] == pairs[1][1]
    for a, b in zip(pairs[0][0], pairs[1][0], strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
            assert a.dim_order(ambiguity_check=False) == b.dim_order(ambiguity_check=False)
        else:
            assert a == b


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("make", [dit, pixart, latte, flux, flux2, sd3, lumina])
def test_a_walk_gives_what_the_network_itself_gives_its_blocks_and_returns_bit_for_bit(make, budget, tmp_path):
    model, data, seen, ends = made(make)
    walk = Walk(model, data, whole(seen), Scratch(tmp_path, budget))
    for segment in walk.segments[:-1]:
        if segment.block is not None:
            for points, (args, kwargs, _) in zip(walk.batches(), seen[segment.block], strict=True):
                equal(walk.arguments(segment.block, points), (args, kwargs))
            for output, (_, _, wanted) in zip(walk.run(segment, {}), seen[segment.block], strict=True):
                equal(output, wanted)
        walk.advance(segment, {})
    for output, wanted in zip(walk.run(walk.segments[-1], {}), ends, strict=True):
        assert torch.equal(output, wanted)
    some = torch.tensor([4, 1])
    alone = model.denoise(data.x[some], data.t[some], data.y[some])
    torch.testing.assert_close(walk.tail(some), alone, rtol=1e-4, atol=1e-5)
    assert all("forward" not in vars(module) for module in model.denoiser.modules())


@torch.no_grad()
@pytest.mark.parametrize("make", [dit, latte])
def test_each_block_runs_twice_a_batch_however_many_there_are(make):
    for blocks in (2, 4, 8):
        model, data, seen, _ = made(make, blocks)
        calls = dict.fromkeys([*seen, "pos_embed"], 0)

        def tick(path, *_, calls=calls):
            calls[path] += 1

        for path in calls:
            module = model.denoiser.get_submodule(path)
            layer = next(m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))
            layer.register_forward_hook(partial(tick, path))
        walk = Walk(model, data, whole(seen))
        for segment in walk.segments[:-1]:
            walk.observe(segment, {})
            walk.advance(segment, {})
        batches, embedder = len(walk.batches()), calls.pop("pos_embed")
        assert set(calls.values()) == {2 * batches}
        assert embedder == (2 * len(seen) + 1) * batches
        kept = sum(leaf.numel() for outputs in walk.outputs.values() for leaf in outputs.leaves)
        assert kept == (2 if make is latte else 1) * seen[next(iter(seen))][0][2].numel() * 5 / 2


@torch.no_grad()
def test_a_network_with_skip_connections_is_refused():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            first = self.blocks[0](x)
            return self.blocks[2](self.blocks[1](first) + first)

    model = Model(Skipping(), lambda *_: None)
    model.denoise = lambda x, t, y: model.denoiser(x)
    data = CalibrationData(torch.randn(3, 4), torch.zeros(3), torch.zeros(3), 2)
    walk = Walk(model, data, whole(["blocks.0", "blocks.1", "blocks.2"]))
    for segment in walk.segments[:3]:
        walk.advance(segment, {})
    with pytest.raises(UserError, match=r"enters blocks\.2 depends on other blocks than the one before it"):
        walk.advance(walk.segments[3], {})


def test_blocks_are_segments_in_the_order_in_which_they_run():
    def site(name, number, path):
        return Site(name, "qkv", number, 8, 8, 4, 0, path)

    sites = [site("embed", None, None), site("a.0.q", 0, "a.0"), site("b.0.q", 1, "b.0"), site("a.1.q", 2, "a.1")]
    sites += [site("out", None, None)]
    found = segments(sites, {s.name for s in sites})
    assert [part.block for part in found] == [None, "a.0", "b.0", "a.1", None]
    sites.insert(2, site("between", None, None))
    with pytest.raises(UserError, match=r"between run between transformer blocks"):
        segments(sites, {s.name for s in sites})
    assert len(segments(sites, {"a.0.q"})) == 5
