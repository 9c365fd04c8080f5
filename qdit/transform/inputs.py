"""The inputs that a transform changes: each is made once, and read by one layer or by several (q, k and v)."""

from dataclasses import dataclass
from itertools import groupby

from qdit.model.base import DiffusionModel, Site


@dataclass(frozen=True)
class Input:
    """An input that is transformed: the layers that read it, and those among them that are quantized."""

    readers: tuple[Site, ...]
    quantized: tuple[Site, ...]

    @property
    def name(self) -> str:
        """The first quantized reader's."""
        return self.quantized[0].name

    @property
    def channels(self) -> int:
        """Its width."""
        return self.quantized[0].in_features


def chosen_inputs(model: DiffusionModel, sites: list[Site], roles: list[str]) -> list[Input]:
    """The inputs of quantized `sites` with one of the roles, in forward order."""
    wanted = {site.name for site in sites if site.role in roles}
    groups = groupby(model.sites(), key=lambda s: (s.block, s.role, s.stage))
    every = (tuple(readers) for _, readers in groups)
    found = (Input(readers, tuple(s for s in readers if s.name in wanted)) for readers in every)
    return [each for each in found if each.quantized]


def folded_into(model: DiffusionModel, inputs: list[Input]) -> dict[str, str | None]:
    """The layer that makes each input and so absorbs what is done to its channels, by quantized reader; or None."""
    producers = model.producers()
    found: dict[str, str | None] = {}
    for each in inputs:
        producer = producers.get(each.name)
        found |= dict.fromkeys((site.name for site in each.quantized), producer.layer if producer else None)
    return found


def role_problems(roles: list[str], sites: list[Site]) -> list[str]:
    """Roles that the model does not have, one sentence each."""
    known = sorted({s.role for s in sites})
    return [f"transform.roles has {r!r}; this model has {', '.join(known)}" for r in roles if r not in known]
