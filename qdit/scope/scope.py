"""Scope: a choice of sites by role, refined by name patterns."""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from qdit.errors import UserError

if TYPE_CHECKING:
    from qdit.model.base import Site


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The sites to quantize.

    Args:
        roles: roles that are quantized (see `qdit.model.base.ROLES`).
        include: name patterns (`fnmatch`) quantized whatever their role.
        exclude: name patterns kept in full precision whatever their role.
    """

    roles: list[str]
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)

    def why_not(self, site: "Site") -> str | None:
        """Why a site stays in full precision; None if it is quantized."""
        for pattern in self.exclude:
            if fnmatch(site.name, pattern):
                return f"scope.exclude has {pattern}"
        if any(fnmatch(site.name, pattern) for pattern in self.include) or site.role in self.roles:
            return None
        return f"{site.role} is not in scope.roles"

    def select(self, sites: "list[Site]") -> "list[Site]":
        """The quantized sites, in the order given.

        Raises:
            UserError: a role or a pattern matches nothing in this model.
        """
        known = {s.role for s in sites}
        for role in self.roles:
            if role not in known:
                raise UserError(f"scope.roles has {role!r}; this model has {', '.join(sorted(known))}")
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatch(s.name, pattern) for s in sites):
                raise UserError(
                    f"scope pattern {pattern!r} matches none of the model's {len(sites)} sites; "
                    f"names look like {sites[0].name}"
                )
        return [s for s in sites if self.why_not(s) is None]
