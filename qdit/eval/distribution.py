"""FID, sFID, Inception score, KID, precision and recall: pure functions of one pass of features, with error bars.

Protocols follow ADM's evaluator (guided-diffusion): all samples against the whole reference, unbiased covariances, IS
in chunks of 5000, k = 3. Each value has a delete-a-group jackknife error, and its difference to full precision a paired
one. At usual n most of an FID, and nearly all of an sFID, is bias of the estimator. So compare at equal n only, read it
beside the floor, which is the score of real images at that n (`qdit-refs floor`), or use `FIDInfinity`, which removes
the bias of order 1/n.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from qdit.errors import Advised, UserError
from qdit.eval.base import Features, OfFeatures, Result, Samples
from qdit.eval.inception_score import inception_score
from qdit.eval.kid import kernel_distance
from qdit.eval.memo import remember
from qdit.eval.precision_recall import NEIGHBOURS, precision_recall
from qdit.eval.reference import Reference, no_features, no_spatial
from qdit.eval.statistics import MIN_SAMPLES, Jackknife, frechet_jackknife, groups_of, shared_prompts, too_few


@remember
def _pooled_frechet(x: Float[Tensor, "n dim"], reference: Reference, groups: Int[Tensor, " n"]) -> Jackknife:
    return frechet_jackknife(x, reference.mu, reference.root, groups)


@remember
def _spatial_frechet(x: Float[Tensor, "n dim"], reference: Reference, groups: Int[Tensor, " n"]) -> Jackknife:
    if reference.mu_s is None:
        raise UserError(no_spatial(reference))
    return frechet_jackknife(x, reference.mu_s, reference.root_s, groups)


@remember
def _precision_recall(
    x: Float[Tensor, "n dim"], reference: Reference, groups: Int[Tensor, " n"]
) -> tuple[Jackknife, Jackknife]:
    return precision_recall(x, reference.features(), reference.radii, groups)


@remember
def _kernel_distance(x: Float[Tensor, "n dim"], reference: Reference, groups: Int[Tensor, " n"]) -> Jackknife:
    return kernel_distance(x, reference.features(), reference.kernel_within, groups)


@dataclass(frozen=True, kw_only=True)
class DistributionMetric(OfFeatures):
    """A metric of a set of images."""

    needs_reference = True
    fewest_references = 2  # a covariance, or a pair
    needs_spatial: ClassVar[bool] = False  # statistics of spatial features
    needs_images: ClassVar[bool] = False  # features of single reference images, not only their moments

    def preflight(
        self, n: int | None = None, reference: Reference | None = None, image_size: int | None = None
    ) -> list[str]:
        """Missing or wrong weights, too few samples, a reference that lacks what this metric reads or is of too few."""
        problems = self.network().preflight()
        if n is not None and n < MIN_SAMPLES:
            problems.append(too_few(n, " or use eval=paired"))
        if self.needs_images and reference is not None and reference.pooled is None:
            problems.append(no_features(reference))
        if self.needs_spatial and reference is not None and reference.mu_s is None:
            problems.append(no_spatial(reference))
        return problems + ([] if reference is None else self._too_few_images(reference))

    def _too_few_images(self, reference: Reference) -> list[str]:
        """A sentence if the reference is of fewer images than this metric is defined for; none where nobody noted."""
        single = None if reference.pooled is None else len(reference.pooled)
        found = single if self.needs_images else reference.n
        if not self.needs_reference or found is None or found >= self.fewest_references:
            return []
        held = f"{found} image{'s' * (found != 1)}"
        return [f"reference {reference.name} is of {held}, {self.fewest_references} are the least"]

    @abstractmethod
    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """The estimate, and the estimate without each group of samples."""

    def compute(self, samples: Samples, full_precision: Samples, reference: Reference | None) -> Result:
        """Value, standard error, and the paired difference unless `samples` is full precision itself.

        Errors are over prompts where samples share them, and None where these are fewer than `MIN_PROMPTS`.

        Raises:
            UserError: no reference, features that are not finite, or sets of different sizes.
        """
        if self.needs_reference and reference is None:
            raise UserError(f"{type(self).__name__} needs reference statistics of extractor {self.extractor}")
        if samples.n != full_precision.n:
            raise UserError(f"{samples.n} samples cannot be paired with {full_precision.n} of full precision")
        groups = groups_of(samples.n, samples.clusters)
        here = self.jackknife(self._features(samples), reference, groups)
        result = {
            "value": here.full,
            "stderr": here.stderr_over(samples.clusters),
            "n": samples.n,
            "higher_is_better": self.higher_is_better,
            "clusters": shared_prompts(samples.clusters),
        }
        if samples is full_precision:
            return Result(**result)
        change = here.minus(self.jackknife(self._features(full_precision), reference, groups))
        return Result(**result, delta=change.full, delta_stderr=change.stderr_over(samples.clusters))

    def _features(self, samples: Samples) -> Features:
        """Features of all samples, refused where one is missing or not finite."""
        features = samples.features(self.extractor)
        for kind, x in features.items():
            if len(x) != samples.n:
                raise UserError(f"{len(x)} {kind} features for {samples.n} samples; overwrite=true makes them again")
            if not x.isfinite().all():
                worst = int((~x.isfinite().all(1)).nonzero()[0])
                problem = f"{kind} features of sample {worst} are damaged (not finite)"
                folder = f"copy the weights of {self.extractor} again, or leave it out of --metrics"
                raise UserError(Advised(problem, run="try overwrite=true", folder=folder))
        return features


@dataclass(frozen=True, kw_only=True)
class FID(DistributionMetric):
    """Fréchet distance of pooled features (Heusel et al., arXiv 1706.08500)."""

    higher_is_better = False

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """Fréchet distance to the reference's pooled statistics."""
        assert reference is not None
        return _pooled_frechet(features["pooled"], reference, groups)


@dataclass(frozen=True, kw_only=True)
class FIDInfinity(DistributionMetric):
    """FID less its bias of order 1/n, by the grouped jackknife (compare Chong & Forsyth, arXiv 1911.07023)."""

    higher_is_better = False

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """The same left-out distances as FID, with the corrected estimate."""
        assert reference is not None
        return _pooled_frechet(features["pooled"], reference, groups).bias_corrected()


@dataclass(frozen=True, kw_only=True)
class SFID(DistributionMetric):
    """Fréchet distance of spatial features (Nash et al., arXiv 2103.03841), channels last as in ADM's evaluator."""

    higher_is_better = False
    needs_spatial = True

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """Fréchet distance to the reference's spatial statistics."""
        assert reference is not None
        return _spatial_frechet(features["spatial"], reference, groups)


@dataclass(frozen=True, kw_only=True)
class InceptionScore(DistributionMetric):
    """exp of the mean KL of class probabilities to their mean (arXiv 1606.03498), in ADM's chunks; no reference."""

    higher_is_better = True
    needs_reference = False

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """The score of the extractor's logits."""
        return inception_score(features["logits"], groups)


@dataclass(frozen=True, kw_only=True)
class KID(DistributionMetric):
    """Unbiased kernel distance of pooled features (arXiv 1801.01401), not times 1000; never clipped: may be below 0."""

    higher_is_better = False
    needs_images = True

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """Kernel distance to the reference's images."""
        assert reference is not None
        return _kernel_distance(features["pooled"], reference, groups)


@dataclass(frozen=True, kw_only=True)
class Precision(DistributionMetric):
    """Share of samples inside the reference's manifold, k = 3 (Kynkäänniemi et al., arXiv 1904.06991)."""

    higher_is_better = True
    fewest_references = NEIGHBOURS + 1
    needs_images = True

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """Precision against the reference's images."""
        assert reference is not None
        return _precision_recall(features["pooled"], reference, groups)[0]


@dataclass(frozen=True, kw_only=True)
class Recall(DistributionMetric):
    """Share of the reference's images inside the samples' manifold, k = 3: the first to fall when diversity goes."""

    higher_is_better = True
    fewest_references = NEIGHBOURS + 1
    needs_images = True

    def jackknife(self, features: Features, reference: Reference | None, groups: Int[Tensor, " n"]) -> Jackknife:
        """Recall of the reference's images."""
        assert reference is not None
        return _precision_recall(features["pooled"], reference, groups)[1]
