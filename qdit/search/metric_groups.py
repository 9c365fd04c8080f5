"""Which sites are judged by which metric (ViDiT-Q, arXiv 2406.02540: metric-decoupled analysis).

Errors in cross-attention harm the agreement with the condition, errors in self-attention and feed-forward layers the
quality of images, and errors in temporal attention the consistency over time; so no single metric ranks them all. Sites
compete for bits within their group only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from qdit.eval.per_sample import PairedMetric
from qdit.model.roles import ROLES, chosen, is_role, meant
from qdit.search.space import Gene


@dataclass(frozen=True, kw_only=True)
class MetricGroup:
    """Sites and the metric that measures the harm of quantizing them.

    Args:
        metric: compares samples with those of full precision on the same noise.
        roles: of its sites (see `qdit.model.roles.ROLES`), and of those that no group has, but that are like them
            (`KIN`); a model without such sites does not have the group.
        sites: name patterns (`fnmatch`) that belong to the group whatever their role.
        widths: bits that its sites may have, of those on offer; None for all.
    """

    metric: PairedMetric
    roles: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    widths: list[int] | None = None


def partition(groups: Mapping[str, MetricGroup], genes: Sequence[Gene]) -> dict[str, list[int]]:
    """The numbers of the genes of each group that has some; patterns come before roles, earlier groups first."""
    found: dict[str, list[int]] = {name: [] for name in groups}
    for number, gene in enumerate(genes):
        named = [name for name, group in groups.items() if any(fnmatch(gene.name, p) for p in group.sites)]
        played = [name for name, group in groups.items() if chosen(gene.sites[0].role, group.roles)]
        like = [name for name, group in groups.items() if meant(gene.sites[0].role, group.roles)]
        for name in (named + played + like)[:1]:
            found[name].append(number)
    return {name: numbers for name, numbers in found.items() if numbers}


def widths(groups: Mapping[str, MetricGroup], genes: Sequence[Gene]) -> dict[int, list[int]]:
    """The bits that a gene's group offers, by the gene's number, where the group does not offer all."""
    chosen = {number: groups[name].widths for number, name in by_gene(partition(groups, genes)).items()}
    return {number: offered for number, offered in chosen.items() if offered is not None}


def by_gene(parts: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """The name of each gene's group, by the gene's number; `parts` as `partition` gives them."""
    return {number: name for name, numbers in parts.items() for number in numbers}


def problems(groups: Mapping[str, MetricGroup], genes: Sequence[Gene]) -> list[str]:
    """Sites without a group and unknown roles, a sentence each."""
    unknown = sorted({role for group in groups.values() for role in group.roles if not is_role(role)})
    found = [f"search.groups has roles {', '.join(unknown)}; choose from {', '.join(ROLES)}"] if unknown else []
    taken = {number for numbers in partition(groups, genes).values() for number in numbers}
    left = [gene for number, gene in enumerate(genes) if number not in taken]
    if left:
        roles = sorted({gene.sites[0].role for gene in left})
        found.append(
            f"search.groups says no metric for {left[0].name}{' and others' * (len(left) > 1)}; give a group the roles "
            f"{', '.join(roles)}"
        )
    return found
