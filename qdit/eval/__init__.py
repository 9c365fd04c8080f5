"""Evaluation: features of images, distances between distributions, paired fidelity to full precision.

One extractor pass over the samples feeds every distribution metric; a metric is a pure function of stored features.
The order of a run is `preflight.prepare` (before sampling), then features, then `Metric.compute`.
"""

from qdit import compat as compat
