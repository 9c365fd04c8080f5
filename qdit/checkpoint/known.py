"""The classes that a checkpoint may hold, with the attributes of their instances: a file can name no others.

A class of qdit that can be saved has its line here. One of your own is declared where it is defined, and that module
must be imported before a checkpoint that holds it is loaded:

    from qdit.checkpoint.known import declare

    @declare("spec", "scale")
    class MyQuantizer(nn.Module): ...
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from typing import TypeVar

from torch import nn

_MODULES = {  # with the names of their attributes, buffers, parameters and children
    "qdit.activation.dynamic.DynamicQuantizer": ("spec",),
    "qdit.activation.quantizers.BookQuantizer": ("spec", "book", "clock", "numbers", "edges"),
    "qdit.activation.quantizers.StaticQuantizer": ("spec", "low", "high", "scale", "zero_point"),
    "qdit.attention.base.Attend": ("q", "k", "v", "probs"),
    "qdit.correction.base.NoiseCorrection": ("timesteps", "slope", "bias", "variance"),
    "qdit.layers.Shared": ("quantizer", "readers", "_input", "_made", "_left"),
    "qdit.nn.balanced.Balanced": ("quantizer", "by"),
    "qdit.nn.basis.Permuted": ("order", "signs"),
    "qdit.nn.basis.Regular": ("block",),
    "qdit.nn.clusters.ClusterQuantizer": ("spec", "low", "high", "clock", "numbers", "members", "edges"),
    "qdit.nn.columns.ColumnParts": ("columns", "first", "second"),
    "qdit.nn.quantizers.ChannelQuantizer": ("spec", "low", "high", "clock", "numbers", "shifts", "edges"),
    "qdit.nn.quantizers.OperandQuantizer": ("spec", "along_tokens"),
    "qdit.nn.quantizers.SummingToOne": ("quantizer",),
    "qdit.transform.branch.Branch": ("up", "down", "change"),
    "qdit.transform.draft.Scale": ("by",),
    "qdit.transform.draft.Shift": ("by",),
    "qdit.transform.rotation.Rotation": ("block", "signs"),
    "torch.nn.modules.linear.Identity": (),
    "torch.nn.modules.linear.Linear": ("in_features", "out_features", "weight", "bias"),
}
_CONTAINERS = ("torch.nn.modules.container.Sequential", "torch.nn.modules.container.ModuleList")
_DATACLASSES = {  # whose fields are what their instances have
    "qdit.quant.affine": ("Affine", "Rounded"),
    "qdit.quant.books": ("Log2", "LogSqrt2", "Renormalised", "Scaled", "Uniform"),
    "qdit.quant.ranges": ("MSE", "MinMax", "Percentile", "PercentileMSE"),
    "qdit.quant.regions": ("ReleasedSum", "TwoRegion", "TwoSided"),
    "qdit.quant.spec": ("QuantSpec",),
    "qdit.quant.time_groups": ("Groups",),
    "qdit.sampler.clock": ("Clock",),
    "qdit.timed": ("Now",),
    "qdit.transform.alpha": ("FixedAlpha", "GridAlpha"),
    "qdit.transform.awq": ("ActivationAware",),
    "qdit.transform.base": ("Origin",),
    "qdit.transform.blocks": ("PermutedHadamard", "RegularHadamard"),
    "qdit.transform.chain": ("Chain",),
    "qdit.transform.learned": ("Learned",),
    "qdit.transform.lowrank": ("LowRank",),
    "qdit.transform.mean": ("Mean",),
    "qdit.transform.reparam": ("Reparameterization",),
    "qdit.transform.rotation": ("Hadamard",),
    "qdit.transform.scaling": ("ChannelScaling",),
    "qdit.transform.shift": ("Centred",),
    "qdit.transform.selective": ("SelectiveHadamard",),
    "qdit.transform.statistics": ("FirstTimestep", "Maximum", "MiddleTimestep", "PerRow", "PerTimestep"),
    "qdit.transform.timestep_aware": ("TimestepAware",),
}
_NOW = {  # a file names a class by its first address, and where that has moved the class is found here
    "qdit.activation.dynamic.DynamicQuantizer": "qdit.nn.quantizers.DynamicQuantizer",
    "qdit.activation.quantizers.BookQuantizer": "qdit.nn.quantizers.BookQuantizer",
    "qdit.activation.quantizers.StaticQuantizer": "qdit.nn.quantizers.StaticQuantizer",
    "qdit.attention.base.Attend": "qdit.nn.attention.Attend",
    "qdit.layers.Shared": "qdit.nn.linear.Shared",
    "qdit.quant.affine.Rounded": "qdit.quant.grid.Rounded",
    "qdit.sampler.clock.Clock": "qdit.nn.clock.Clock",
    "qdit.timed.Now": "qdit.nn.switch.Now",
    "qdit.transform.branch.Branch": "qdit.nn.basis.Branch",
    "qdit.transform.draft.Scale": "qdit.nn.basis.Scale",
    "qdit.transform.draft.Shift": "qdit.nn.basis.Shift",
    "qdit.transform.rotation.Rotation": "qdit.nn.basis.Rotation",
    "qdit.transform.selective.SelectiveHadamard": "qdit.transform.rotation.SelectiveHadamard",
}
_FIRST = {now: first for first, now in _NOW.items()}
_OWN = {*_MODULES, *_CONTAINERS, *(f"{place}.{name}" for place, names in _DATACLASSES.items() for name in names)}
_declared: dict[str, tuple[type, tuple[str, ...]]] = {}

Kind = TypeVar("Kind")


def path_of(kind: type) -> str:
    """The name under which a class is saved."""
    now = f"{kind.__module__}.{kind.__qualname__}"
    return _FIRST.get(now, now)


def declare(*members: str) -> Callable[[type[Kind]], type[Kind]]:
    """Let checkpoints hold a class that is not qdit's: a module with these members, or a dataclass.

    Args:
        members: the names of a module's attributes, buffers, parameters and children; a dataclass needs none.

    Raises:
        TypeError: the class is neither.
    """

    def note(kind: type[Kind]) -> type[Kind]:
        if not (issubclass(kind, nn.Module) or is_dataclass(kind)):
            raise TypeError(f"{kind} is no module and no dataclass")
        _declared[path_of(kind)] = (kind, members)
        return kind

    return note


def find_class(where: str) -> type:
    """The class of a name.

    Raises:
        ValueError: it is none of those that a checkpoint may hold.
    """
    if where in _declared:
        return _declared[where][0]
    if where not in _OWN:
        raise ValueError(f"{where} is none of the classes that a checkpoint may hold, and cannot be loaded")
    place, _, name = _NOW.get(where, where).rpartition(".")
    return getattr(import_module(place), name)


def is_known(kind: type) -> bool:
    """Whether a checkpoint may hold objects of a class."""
    where = path_of(kind)
    return where in _OWN or (where in _declared and _declared[where][0] is kind)


def check_members(kind: type, names: list[str]) -> None:
    """Compare the names that a file gives a module with those that the class's instances have.

    Raises:
        ValueError: they differ, so that something would be missing, or a method be replaced.
    """
    where = path_of(kind)
    if where in _CONTAINERS:
        wrong = {name for name in names if not name.isdecimal()}
    else:
        own = _MODULES[where] if where in _MODULES else _declared[where][1]
        wrong = set(names) ^ set(own)
    if wrong or len(set(names)) != len(names):
        raise ValueError(f"{kind.__name__} has other members ({', '.join(sorted(wrong)) or 'one of them twice'})")
