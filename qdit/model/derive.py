"""Sites and attentions of a network, derived from one forward pass and one table of roles, not listed by hand.

The pass (`qdit.model.trace`) runs on the meta device. Sites are in the order of execution; layers that read the same
tensor are one stage (q, k and v share a quantizer of their input); rows and the shapes of attentions are measured. What
cannot be derived comes from the adapter: the network's arguments, which layers fold into which, and the roles of layers
whose names mislead.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Site
from qdit.model.roles import INSIDE, OUTSIDE, ROLES, Patterns, named
from qdit.model.trace import LINEAR, Call, Trace, trace

_ENTRY = ("qkv", "parallel_in")  # what reads a block's first normalized input


def block_lists(shell: nn.Module) -> list[str]:
    """The lists at the top of a network that hold transformer blocks: each child has two linear layers or more."""
    return [
        name
        for name, child in shell.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child)
        and all(sum(isinstance(m, LINEAR) for m in block.modules()) > 1 for block in child)
        and "refiner" not in name
    ]


def derive(
    shell: nn.Module, call: Callable[[nn.Module], Any], own: Patterns = ()
) -> tuple[list[Site], list[Attention]]:
    """The sites and attentions of a network, in forward order.

    Args:
        shell: the network, best on the meta device.
        call: calls it with the inputs of one sample.
        own: patterns of roles that go before the common ones.

    Raises:
        UserError: layers without a role; blocks that do not run; adapters (LoRA) or fused projections are in place.
    """
    check_plain(shell)
    found, lists = trace(shell, call), block_lists(shell)
    numbers: dict[str, int] = {}
    for each in found.calls:
        if (block := _block_of(each.name, lists)) is not None:
            numbers.setdefault(block, len(numbers))
    walked = {name: [f"{name}.{n}" for n in range(len(shell.get_submodule(name)))] for name in lists}  # pyright: ignore[reportArgumentType]
    if idle := [block for blocks in walked.values() for block in blocks if block not in numbers]:
        raise UserError(f"a forward pass does not use {', '.join(idle)}: these blocks cannot be walked")
    roles = _roles(found, lists, own)
    stages = _stages(found, lists, roles)
    sites = [
        _site(
            each,
            role=roles[each.name],
            block=_block_of(each.name, lists),
            numbers=numbers,
            stage=stages[each.name],
            reads=found.calls[each.reads].name,
        )
        for each in found.calls
    ]
    return sites, _attentions(found, lists, numbers)


def structure(
    denoiser: nn.Module, call: Callable[[nn.Module], Any], own: tuple[tuple[str, str], ...] = ()
) -> tuple[list[Site], list[Attention]]:
    """`derive` of a loaded network, on the meta device; found once a process for each config.

    Args:
        denoiser: a diffusers model.
        call: calls it with meta tensors of one sample; a function of a module, so that it names a cache entry.
        own: as of `derive`.

    Raises:
        UserError: as `derive`.
    """
    check_plain(denoiser)
    config: Any = denoiser.config
    sites, attentions = _structure(type(denoiser), json.dumps(dict(config), sort_keys=True, default=str), call, own)
    return list(sites), list(attentions)


@lru_cache(maxsize=32)
def _structure(
    kind: Any, config: str, call: Callable[[nn.Module], Any], own: tuple[tuple[str, str], ...]
) -> tuple[list[Site], list[Attention]]:
    with torch.device("meta"):
        shell = kind.from_config(json.loads(config))
    return derive(shell, call, own)


def check_plain(shell: nn.Module) -> None:
    """Refuse a network whose linear layers were wrapped or joined: sites would be missing or doubled.

    Raises:
        UserError: naming the first of them.
    """
    for name, module in shell.named_modules():
        if hasattr(module, "base_layer"):
            raise UserError(f"{name} has an adapter (LoRA) in place; fuse or unload it first")
        if getattr(module, "fused_projections", False):
            raise UserError(f"{name} has fused projections; call unfuse_qkv_projections() first")


def _block_of(name: str, lists: Sequence[str]) -> str | None:
    """The path of the block that a layer is in."""
    top, _, rest = name.partition(".")
    return f"{top}.{rest.partition('.')[0]}" if top in lists else None


def _roles(found: Trace, lists: Sequence[str], own: Patterns) -> dict[str, str]:
    """Role by layer.

    Raises:
        UserError: a layer has none.
    """
    reads = {each.name: each.reads for each in found.calls}
    roles: dict[str, str] = {}
    for each in found.calls:
        inside = _block_of(each.name, lists) is not None
        role = named(each.name, (*own, *(INSIDE if inside else OUTSIDE)))
        if role is not None:
            roles[each.name] = _attending(each.name, role, reads)
    if unknown := sorted({role for _, role in own} - {*ROLES, "q", "kv", "out"}):
        raise UserError(f"the adapter's roles name {', '.join(unknown)}; there are {', '.join(ROLES)}")
    if missing := [each.name for each in found.calls if each.name not in roles]:
        raise UserError(
            f"no role is known for {len(missing)} of the network's {len(reads)} linear layers "
            f"({', '.join(missing[:4])}); give patterns of their roles with the adapter (`roles`, such as "
            '("proj_mlp", "ffn_up"))'
        )
    return roles


def _attending(name: str, role: str, reads: dict[str, int]) -> str:
    """The role of an attention's layer, by whether its keys read what its queries read."""
    if role == "text_kv":  # of a joint attention, or keys of an image beside those of a text (Wan)
        place = name.rpartition(".")[0]
        return "text_qkv" if f"{place}.add_q_proj" in reads else "image_kv"
    if role not in ("q", "kv", "out"):
        return role
    place = name.removesuffix(".to_out.0").rpartition(".")[0] if role != "out" else name.removesuffix(".to_out.0")
    crossing = reads.get(f"{place}.to_q") != reads.get(f"{place}.to_k")
    if role == "out":
        return "cross_out" if crossing else "attn_out"
    return {"q": "cross_q", "kv": "cross_kv"}[role] if crossing else "qkv"


def _stages(found: Trace, lists: Sequence[str], roles: dict[str, str]) -> dict[str, int]:
    """The order of execution inside a block, or among the sites before or behind the blocks; one for one input.

    Attention's input is stage 0 of a block, and what prepares the block's modulation is negative.
    """
    groups: dict[str, list[Call]] = {}
    for each in found.calls:
        block = _block_of(each.name, lists)
        groups.setdefault(block or ("before" if groups.keys() <= {"before"} else "behind"), []).append(each)
    stages: dict[str, int] = {}
    for members in groups.values():
        inputs = list(dict.fromkeys(each.reads for each in members))
        zero = next((inputs.index(each.reads) for each in members if roles[each.name] in _ENTRY), 0)
        stages |= {each.name: inputs.index(each.reads) - zero for each in members}
    return stages


def _site(call: Call, *, role: str, block: str | None, numbers: dict[str, int], stage: int, reads: str) -> Site:
    weight: Tensor = call.layer.weight  # pyright: ignore[reportAssignmentType]
    number = None if block is None else numbers[block]
    return Site(call.name, role, number, weight[0].numel(), weight.shape[0], call.rows, stage, block, reads)


def _attentions(found: Trace, lists: Sequence[str], numbers: dict[str, int]) -> list[Attention]:
    """Every softmax attention, as its first call is."""
    made: dict[str, Attention] = {}
    for name, q, k in found.products:
        if name not in made:
            block = _block_of(name, lists)
            number = None if block is None else numbers[block]
            copies, heads, tokens, width = q.shape
            made[name] = Attention(name, number, heads, width, tokens, k.shape[2], copies)
    return list(made.values())
