"""Everything that an evaluation needs, checked and gathered before the first sample is drawn.

A missing weight file that is only noticed after a night of sampling is the classical failure. Here every problem of
every metric is reported beforehand, in one message.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdit.assets import shipped
from qdit.errors import UserError, from_problems
from qdit.eval.base import Metric
from qdit.eval.extractor import FeatureExtractor
from qdit.eval.reference import Reference, find, wrong_size

log = logging.getLogger("qdit")


@dataclass(frozen=True)
class Prepared:
    """Extractors (not loaded) and references by extractor name."""

    extractors: dict[str, FeatureExtractor]
    references: dict[str, Reference]

    def reference_of(self, metric: Metric) -> Reference | None:
        """What to pass to `metric.compute`."""
        return self.references.get(metric.extractor) if metric.extractor else None


def prepare(
    metrics: Mapping[str, Metric],
    *,
    n: int,
    dataset: str,
    cache_dir: Path,
    image_size: int | None = None,
    prompts: Sequence[str] = (),
    suite: str | None = None,
    group: str = "eval",
) -> Prepared:
    """Find weights and references for these metrics.

    Args:
        metrics: by the name they have in the result.
        n: number of samples that will be drawn.
        dataset: name of the data set whose reference is wanted.
        cache_dir: where `qdit-refs` keeps references.
        image_size: pixels along a side of the images; None leaves it unchecked.
        prompts: those that will be sampled, or names of classes; none leaves them unchecked.
        suite: what the prompts are of, if that has a name.
        group: the config group that the metrics stand in, for messages.

    Raises:
        UserError: with every problem of every metric, each named once with the metrics that share it.
    """
    problems: dict[str, list[str]] = {}
    prepared = Prepared({}, {})
    for name, metric in metrics.items():
        found = _gather(metric, prepared, dataset, cache_dir)
        found += _sized(metric, prepared, dataset, image_size)
        found += metric.preflight(n, prepared.reference_of(metric), image_size)
        found += metric.unreadable(prompts) if prompts else []
        if metric.suite not in (None, suite):
            found.append(f"it judges the prompts of {metric.suite} alone; use dataset={metric.suite}")
        for problem in dict.fromkeys(found):
            problems.setdefault(problem, []).append(name)
    if problems:
        lines = [f"{group}.{', '.join(names)}: {problem}" for problem, names in problems.items()]
        raise from_problems(lines, "the evaluation" if group == "eval" else group)
    return prepared


def _sized(metric: Metric, prepared: Prepared, dataset: str, image_size: int | None) -> list[str]:
    """A sentence where the reference is of images of another size; a size that nobody noted is mentioned."""
    if (reference := prepared.reference_of(metric)) is None or image_size is None:
        return []
    if reference.image_size is None and not shipped(dataset, reference.extractor):
        log.info("reference %s: the size of its images is not noted, so unverified", reference.name)
    return wrong_size(reference, image_size, image_size)


def _gather(metric: Metric, prepared: Prepared, dataset: str, cache_dir: Path) -> list[str]:
    """Add the metric's extractor and reference to `prepared`; sentences where the reference cannot be used."""
    if metric.extractor is None or (extractor := metric.network()) is None:
        return []
    first = prepared.extractors.setdefault(metric.extractor, extractor)
    if first.weights != extractor.weights:
        found = " and ".join(str(each.weights or "the usual places") for each in (first, extractor))
        return [f"the weights of {extractor.name} are given as {found}; all metrics of a run read the same"]
    if not metric.needs_reference or metric.extractor in prepared.references:
        return []
    try:
        reference = find(dataset, metric.extractor, cache_dir)
    except UserError as error:
        return list(error.problems)
    prepared.references[metric.extractor] = reference
    made_with = reference.provenance.get("extractor_sha256")
    if made_with is None or extractor.preflight() or made_with == extractor.weights_sha256:
        return []
    return [f"reference {reference.name} was made with other {extractor.name} weights; make it again with qdit-refs"]
