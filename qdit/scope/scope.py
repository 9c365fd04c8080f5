"""Scope: which sites (quantized places) are quantized, by their role in the network, refined by name patterns."""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from qdit.model.roles import chosen, is_role, names_of

if TYPE_CHECKING:
    from qdit.model.base import Site


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The sites to quantize.

    Args:
        roles: roles that are quantized (see `qdit.model.roles.ROLES`).
        include: name patterns (`fnmatch`) quantized whatever their role; of two networks, also names inside each.
        exclude: name patterns kept in full precision whatever their role.
    """

    roles: list[str]
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)

    def why_not(self, site: "Site") -> str | None:
        """Why a site stays in full precision; None if it is quantized."""
        if (pattern := self.excluding(site.name)) is not None:
            return f"scope.exclude has {pattern}"
        if any(_matches(site.name, pattern) for pattern in self.include) or chosen(site.role, self.roles):
            return None
        return f"{site.role} is not in scope.roles"

    def excluding(self, name: str) -> str | None:
        """The pattern of `exclude` that a site's name matches, None if none does.

        No other rule of a scope applies to the operands of attentions.
        """
        return next((pattern for pattern in self.exclude if _matches(name, pattern)), None)

    def problems(self, sites: "list[Site]") -> list[str]:
        """Patterns, and names of roles, that match nothing in a model with these sites, one sentence each.

        A role that other families have is none, and of the patterns of `include` one is enough: a scope serves many.
        """
        known = sorted({s.role for s in sites})
        found = [f"scope.roles has {r!r}; this model has {', '.join(known)}" for r in self.roles if not is_role(r)]
        if self.roles and not found and not any(chosen(role, self.roles) for role in known):
            found = [f"scope.roles has {', '.join(self.roles)}; this model has {', '.join(known)}"]
        included = any(_matches(s.name, p) for s in sites for p in self.include)
        return found + [
            f"scope pattern {p!r} matches none of the model's {len(sites)} sites; names look like {sites[-1].name}"
            for p in (*(() if included else self.include), *self.exclude)
            if not any(_matches(s.name, p) for s in sites)
        ]

    def select(self, sites: "list[Site]") -> "list[Site]":
        """The quantized sites, in the order given."""
        return [s for s in sites if self.why_not(s) is None]


def _matches(site: str, pattern: str) -> bool:
    return any(fnmatch(name, pattern) for name in names_of(site))
