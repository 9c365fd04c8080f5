"""VBench's totals, of all dimensions of one protocol or not at all.

norm = (value - least) / (most - least) times the weight, as the released script has it; values are not clipped. Quality
is the mean of seven dimensions, in which dynamic degree counts half; semantic that of nine; the total (4 quality +
semantic) / 5. The released script puts 0 where a dimension is missing, which gives negative numbers: here a total that
lacks one is refused. Errors add as if the dimensions were independent; those that share videos are not. Temporal
flickering is what it was measured of: nothing here runs VBench's static filter (`UNFILTERED`). No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from qdit.errors import UserError


class Scale(NamedTuple):
    """The least and the most that a dimension is normalised by, and its weight."""

    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0


QUALITY: dict[str, Scale] = {
    "subject_consistency": Scale(0.1462),
    "background_consistency": Scale(0.2615),
    "temporal_flickering": Scale(0.6293),
    "motion_smoothness": Scale(0.706, 0.9975),
    "aesthetic_quality": Scale(),
    "imaging_quality": Scale(),
    "dynamic_degree": Scale(weight=0.5),
}
SEMANTIC: dict[str, Scale] = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(0, 0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(0, 0.364),
    "overall_consistency": Scale(0, 0.364),
}
DIMENSIONS = {**QUALITY, **SEMANTIC}


FLICKERING = "temporal_flickering"
UNFILTERED = (
    "note: temporal_flickering by VBench's own code is of all videos, moving ones too. Its static filter, a script of "
    "its own which its maintainers require, is not run, so that flickering, quality and total are not comparable with "
    "scores behind the filter (docs/metrics.md)"
)
"""What a reader of totals, and of flickering by VBench's own code, has to know."""


@dataclass(frozen=True)
class Value:
    """A dimension's value in 0 … 1, its standard error, and the protocol that it was made under."""

    value: float
    stderr: float | None = None
    protocol: str = ""


def group(values: Mapping[str, Value], scales: Mapping[str, Scale], name: str) -> Value:
    """The weighted mean of normalised dimensions.

    Raises:
        UserError: one is missing, or two are of different protocols.
    """
    if missing := [dimension for dimension in scales if dimension not in values]:
        have = ", ".join(dimension for dimension in scales if dimension in values) or "none"
        raise UserError(
            f"no {name} of VBench without {', '.join(missing)}: it needs all {len(scales)}; these are {have}"
        )
    protocols = {dimension: values[dimension].protocol for dimension in scales}
    if len(set(protocols.values())) > 1:
        shown = "; ".join(
            f"{p or 'unknown'}: {', '.join(d for d in protocols if protocols[d] == p)}"
            for p in sorted(set(protocols.values()))
        )
        raise UserError(f"no {name} of VBench over several protocols ({shown}); make all dimensions under one")
    total = sum(scale.weight for scale in scales.values())
    factors = {d: scale.weight / (scale.most - scale.least) / total for d, scale in scales.items()}
    value = sum(factors[d] * (values[d].value - scale.least) for d, scale in scales.items())
    errors = [(factors[d], values[d].stderr) for d in scales]
    known = [factor * error for factor, error in errors if error is not None]
    stderr = sqrt(sum(each * each for each in known)) if len(known) == len(errors) else None
    return Value(value, stderr, next(iter(protocols.values())))


def totals(values: Mapping[str, Value]) -> dict[str, Value]:
    """Quality, semantic and total.

    Raises:
        UserError: one of the sixteen dimensions is missing, or they are of different protocols.
    """
    if missing := [dimension for dimension in DIMENSIONS if dimension not in values]:
        raise UserError(f"no total of VBench without {', '.join(missing)}: it needs all {len(DIMENSIONS)} dimensions")
    group(values, DIMENSIONS, "total")  # one protocol for all
    quality, semantic = group(values, QUALITY, "quality score"), group(values, SEMANTIC, "semantic score")
    stderr = None
    if quality.stderr is not None and semantic.stderr is not None:
        stderr = sqrt((4 * quality.stderr) ** 2 + semantic.stderr**2) / 5
    whole = Value((4 * quality.value + semantic.value) / 5, stderr, quality.protocol)
    return {"quality": quality, "semantic": semantic, "total": whole}
