"""`Policy`: how each site is quantized (bits, granularity, grid), as plain values that are saved beside the result.

It is what other tools call a quantization config per layer, or a bit allocation. A site's weight may depend on the
timestep (`Span`): mixed precision over ranges of the sampling trajectory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from qdit.errors import UserError
from qdit.quant.spec import QuantSpec
from qdit.quant.time_groups import Time
from qdit.storage.atomic import atomic_write
from qdit.storage.reading import Unreadable, read_yaml


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of the sampler's timesteps, and the weight that a site has in it; None is full precision."""

    first: Time
    """The noisiest timestep."""
    last: Time
    """The least noisy one; what lies between it and the next range belongs to the next range."""
    steps: int
    """Sampling steps in the range."""
    weight: QuantSpec | None


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """How a site's weight and input are quantized; None leaves it in full precision."""

    weight: QuantSpec | None
    """With `spans`, the one of fewest bits."""
    activation: QuantSpec | None
    spans: tuple[Span, ...] = ()
    """Ranges of timesteps with weights of their own, noisiest first; empty where one weight serves all the time."""
    bases: int = 1
    """In how many bases the weight is kept: a transform that changes over time has one for each range of timesteps."""

    @property
    def weights(self) -> list[QuantSpec | None]:
        """The different weights that are kept, by falling bits; those of several bases differ."""
        found = {span.weight for span in self.spans} or {self.weight}
        return sorted([*found] * self.bases, key=lambda spec: -_bits(spec))

    @property
    def weight_bits(self) -> float:
        """Bits of the weight, 16 where it is not quantized; their mean over sampling steps where they change."""
        if not self.spans:
            return _bits(self.weight)
        return sum(_bits(span.weight) * span.steps for span in self.spans) / sum(span.steps for span in self.spans)

    @property
    def activation_bits(self) -> int:
        """Bits of the input, 16 where it is not quantized."""
        return _bits(self.activation)

    @property
    def operand_bits(self) -> int:
        """Bits of the input as an integer product multiplies it; see `QuantSpec.operand_bits`."""
        return self.activation.operand_bits if self.activation else 16

    def __str__(self) -> str:
        weight = str(self.weight or "in 16 bits")
        if self.spans:
            weight += f" at most, with {', '.join(str(_bits(span.weight)) for span in self.spans)} bits over time"
        if self.bases > 1:
            weight += f" in {self.bases} bases over time"
        return f"weight {weight}, activation {self.activation or 'in 16 bits'}"

    def tree(self) -> dict[str, Any]:
        """Plain values; `LayerSpec.of` is the inverse."""
        found: dict[str, Any] = {"weight": _plain(self.weight), "activation": _plain(self.activation)}
        if self.spans:
            found["spans"] = [vars(span) | {"weight": _plain(span.weight)} for span in self.spans]
        return found if self.bases == 1 else found | {"bases": self.bases}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "LayerSpec":
        """The specs of plain values."""
        if unknown := tree.keys() - {"weight", "activation", "spans", "bases"}:
            raise ValueError(f"a layer has {', '.join(sorted(map(str, unknown)))}")
        specs = {key: _spec(tree[key]) for key in ("weight", "activation")}
        spans = tuple(Span(**{**span, "weight": _spec(span["weight"])}) for span in tree.get("spans", ()))
        bases = tree.get("bases", 1)
        counts, times = [bases, *(s.steps for s in spans)], [t for s in spans for t in (s.first, s.last)]
        if not all(map(_is_whole, counts)) or not all(map(_is_time, times)):
            raise ValueError("a number of bases, steps or a timestep is none")
        if bases < 1 or any(span.steps < 1 for span in spans):
            raise ValueError("a number of bases or steps is below 1")
        return cls(**specs, spans=spans, bases=bases)


def _bits(spec: QuantSpec | None) -> int:
    """Bits of a spec; 16 for full precision."""
    return spec.bits if spec else 16


def _plain(spec: QuantSpec | None) -> dict[str, Any] | None:
    return spec.as_dict() if spec else None


def _spec(tree: Mapping[str, Any] | None) -> QuantSpec | None:
    return QuantSpec(**tree) if tree is not None else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and isfinite(value))


class Policy(dict[str, LayerSpec]):
    """Site name -> `LayerSpec`."""

    def tree(self) -> dict[str, dict[str, Any]]:
        """Plain values; `Policy.of` is the inverse."""
        return {name: layer.tree() for name, layer in self.items()}

    @classmethod
    def of(cls, tree: Mapping[str, Mapping[str, Any]]) -> "Policy":
        """The policy of plain values."""
        return cls({name: LayerSpec.of(layer) for name, layer in tree.items()})

    def save(self, path: Path) -> None:
        """Write `policy.yaml`."""
        atomic_write(path, yaml.safe_dump({"policy": self.tree()}, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read `policy.yaml`.

        Raises:
            UserError: the file is missing or not a policy.
        """
        advice = "give the policy.yaml of a run"
        try:
            return cls.of(read_yaml(path, advice)["policy"])
        except Unreadable as error:
            raise UserError(f"{path} is not a policy file: it {error.reason.removeprefix('it ')}; {advice}") from error
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a policy file ({type(error).__name__}: {error}); {advice}") from error
