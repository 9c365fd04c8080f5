"""Runs that judge what others quantized (`model=pipeline`): two pipelines, and what they cost."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from qdit.checkpoint import installed
from qdit.dataset.prompts import Prompts, unshown
from qdit.errors import from_problems
from qdit.ledger import FULL_BITS, ledger
from qdit.model.pipeline import Called
from qdit.runs.checks import unfit
from qdit.runs.identity import full_precision, is_external
from qdit.runs.parts import plan
from qdit.runs.setup import Setup, missing_here


def assemble(config: dict[str, Any]) -> Setup:
    """The two pipelines of `model=pipeline`, loaded, and all that judges them.

    Raises:
        UserError: a folder cannot be loaded, or the two do not belong together.
    """
    made = plan(config)
    texts = made.dataset.texts if isinstance(made.dataset, Prompts) else None
    given = made.device, getattr(torch, config["dtype"]), texts
    external, model = made.loader.load(*given), made.loader.load_reference(*given)
    problems = made.sampler.check(external) + made.dataset.check(external)
    problems += unshown(made.dataset, made.sampler.hides_null(external))
    problems += unfit({f"eval={name}": metric for name, metric in made.metrics.items()}, config, external)
    problems += unpaired(external, model)
    if problems:
        raise from_problems(problems, "this run")
    about = made.metrics, made.prepared, made.objective
    return Setup(model, made.loader.protocol(), made.dataset, made.sampler, None, *about, external=external)


def describe(config: dict[str, Any]) -> None:
    """Print what is judged, and against what: the plan of `dry=true`."""
    parts = assemble(config)
    for key, of in {"path": config, "against": full_precision(config)}.items():
        found = cost(parts, of)
        bits = found.get("weight_bits_model", 0.0)
        method = config["quantizer"]["name"] if key == "path" else "full precision"
        size = f"{found['model_bytes'] / 1e6:.2f} MB, {bits:.2f} bits a weight over the transformer"
        print(f"model.{key}={config['model'][key]} ({method}): {size}")
    if missing := missing_here(config, parts):
        print(missing)


def unpaired(external: Called, model: Called) -> list[str]:
    """Why two pipelines cannot have the same noise; none if they can."""
    kinds = [type(each.pipe).__name__ for each in (external, model)]
    if kinds[0] != kinds[1]:
        return [f"a {kinds[0]} is judged against a {kinds[1]}: they cannot have the same noise"]
    if external.dtype != model.dtype:
        return [
            f"what is judged is in {external.dtype}, full precision in {model.dtype}: they would not have the same "
            "noise; load both in one dtype"
        ]
    return []


def judged(parts: Setup) -> Setup:
    """The setup with what others quantized in the place of full precision."""
    assert parts.external is not None
    return replace(parts, model=parts.external)


def cost(parts: Setup, config: dict[str, Any]) -> dict[str, Any]:
    """Of a pipeline that is judged, or of that which it is judged against: of qdit's own the whole ledger.

    Of others' what the transformer stores is counted, as the ledger counts: codes at the bits that they take, and what
    is in floating point, scales among it, at 16 bits at most. BitOps are not known.
    """
    full = parts.model.denoiser
    network = parts.external.denoiser if is_external(config) and parts.external is not None else full
    if (state := installed.state_of(network)) is not None:
        about = state.adapter.sites(), state.quantized.policy, state.adapter.attentions(), state.run_time
        return asdict(ledger(state.parameters, *about))
    bits = stored_bits(network)
    return {"weight_bits_model": bits / sum(p.numel() for p in full.parameters()), "model_bytes": bits // 8}


def stored_bits(network: nn.Module) -> int:
    """Bits of what a network's `state_dict` would store, floating-point numbers at 16 at most."""
    kept = [tensor for tensor in network.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)]
    return sum(_bits(part) for tensor in kept for part in _plain(tensor))


def _plain(tensor: Tensor) -> list[Tensor]:
    """The tensors that a tensor is made of, which a quantized one (torchao's) has several of."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    return [part for name in names for part in _plain(getattr(tensor, name))]


def _bits(tensor: Tensor) -> int:
    size = 8 * tensor.element_size()
    return tensor.numel() * (min(size, FULL_BITS) if tensor.is_floating_point() else size)
