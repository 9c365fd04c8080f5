"""Reference statistics: those of real images under one extractor, to which distribution metrics measure the distance.

File: safetensors with the provenance as JSON in its header. `pooled` features are kept in float16 (KID, precision and
recall need them); where they are all of the data, `mu` and `sigma` are computed from them at load and not stored,
otherwise they are stored in float32. `mu_s` and `sigma_s` are always stored, in float32. For the 2,233 emoji and 1280
features that is 5.7 MB + .8 MB instead of 13 MB, and moves an FID by less than a thousandth. Computation is in
float64.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdit.assets import places
from qdit.errors import UserError
from qdit.eval.extractor import EXTRACTORS
from qdit.eval.kid import mean_within
from qdit.eval.precision_recall import radii_of
from qdit.eval.statistics import Moments, symmetric_root
from qdit.storage.reading import parse_json
from qdit.storage.tensors import Damaged, load_with_about, save_tensors

FORMAT = "1"


@dataclass(eq=False, kw_only=True)
class Reference:
    """Means and covariances (float64) of `pooled` [D] and `spatial` [S] features; `pooled` float32 [m, D], or None.

    `mu_s` and `sigma_s` are None where the source has statistics of pooled features alone, which serve FID. `n` counts
    the images behind the means, None where the source does not say.
    """

    name: str
    extractor: str
    mu: Tensor
    sigma: Tensor
    mu_s: Tensor | None
    sigma_s: Tensor | None
    pooled: Tensor | None
    n: int | None
    provenance: dict[str, str] = field(default_factory=dict)

    @cached_property
    def root(self) -> Tensor:
        """Symmetric root of `sigma`."""
        return symmetric_root(self.sigma)

    @cached_property
    def root_s(self) -> Tensor:
        """Symmetric root of `sigma_s`, where there is one."""
        assert self.sigma_s is not None
        return symmetric_root(self.sigma_s)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels; None if the source does not say, as before they were kept."""
        size = re.fullmatch(r"(\d+)x(\d+)", str(self.provenance.get("image_size")))
        crop = re.fullmatch(r"adm (\d+)", str(self.provenance.get("crop")))
        return (int(size[1]), int(size[2])) if size else (int(crop[1]), int(crop[1])) if crop else None

    @cached_property
    def kernel_within(self) -> float:
        """Mean KID kernel between different reference images."""
        return mean_within(self.features())

    @cached_property
    def radii(self) -> Tensor:
        """Radii of the reference manifold of precision."""
        pooled = self.features()
        return radii_of(pooled - pooled.mean(0))

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of what a file of it holds, for caches and floors: the same on every machine."""
        hasher = hashlib.sha256()
        for name, tensor in sorted(self.stored().items()):
            hasher.update(f"{name} {list(tensor.shape)}\n".encode())
            hasher.update(tensor.contiguous().numpy().data)
        return hasher.hexdigest()[:12]

    def stored(self) -> dict[str, Tensor]:
        """The tensors of its file, by name; moments that follow from features are not among them."""
        tensors = {}
        if self.mu_s is not None and self.sigma_s is not None:
            tensors = {"mu_s": self.mu_s.float(), "sigma_s": self.sigma_s.float()}
        if self.pooled is not None:
            tensors["pooled"] = self.pooled.half()
        if self.pooled is None or len(self.pooled) != self.n:
            tensors |= {"mu": self.mu.float(), "sigma": self.sigma.float()}
        return tensors

    def features(self) -> Tensor:
        """Pooled features of reference images, float32 [m, D].

        Raises:
            UserError: they are not part of this reference.
        """
        if self.pooled is None:
            raise UserError(no_features(self))
        return self.pooled

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        about = {"name": self.name, "extractor": self.extractor, "n": self.n, "provenance": self.provenance}
        save_tensors(path, self.stored(), {"format": FORMAT, "qdit_reference": json.dumps(about, sort_keys=True)})


def no_features(reference: Reference) -> str:
    """The sentence about a reference without the features of single images."""
    return (
        f"reference {reference.name} of extractor {reference.extractor} has no features of single images, which KID, "
        "precision and recall need; import it again with the extractor's weights present"
    )


def no_spatial(reference: Reference) -> str:
    """The sentence about a reference without statistics of spatial features."""
    return (
        f"reference {reference.name} of extractor {reference.extractor} has no mu_s and sigma_s, which sFID needs; "
        "make it of images (qdit-refs build), or import a file that has them"
    )


def wrong_size(reference: Reference, height: int, width: int) -> list[str]:
    """One sentence if a reference is known to be of images of another size than these."""
    if reference.image_size in (None, (height, width)):
        return []
    found = "{}×{}".format(*reference.image_size)
    return [
        f"reference {reference.name} is of images of {found} px, and these have {height}×{width}: distances between "
        f"sizes mean nothing. Make it again: qdit-refs build IMAGES --name {reference.name} --extractor "
        f"{reference.extractor} --size {min(height, width)}"
    ]


def load(path: Path) -> Reference:
    """Read and check a reference.

    Raises:
        UserError: the file is missing, damaged, not a reference, of the wrong size, not finite, or not a covariance.
    """
    if not path.exists():
        raise UserError(f"reference statistics {path} do not exist")
    try:
        tensors, metadata = load_with_about(path)
        about = parse_json(metadata["qdit_reference"], path, "make it with qdit-refs")
        name, extractor, n, provenance = (about[k] for k in ("name", "extractor", "n", "provenance"))
        _check_about(name, extractor, n, provenance)
        pooled = tensors["pooled"].float() if "pooled" in tensors else None
        if "mu" in tensors:
            mu, sigma = tensors["mu"].double(), tensors["sigma"].double()
        else:
            moments = Moments.of(tensors["pooled"])
            mu, sigma = moments.mean, moments.covariance()
        spatial = (tensors["mu_s"].double(), tensors["sigma_s"].double()) if "mu_s" in tensors else (None, None)
        provenance = dict(provenance)
    except Damaged as error:
        raise UserError(f"{path} is not a reference file of qdit, or {error.reason}; make it with qdit-refs") from error
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} is not a reference file of qdit ({error}); make it with qdit-refs") from error
    _check(path, extractor, {"pooled": (mu, sigma), "spatial": spatial}, pooled)
    return Reference(
        name=name,
        extractor=extractor,
        mu=mu,
        sigma=sigma,
        mu_s=spatial[0],
        sigma_s=spatial[1],
        pooled=pooled,
        n=n,
        provenance=provenance,
    )


def _check_about(name: object, extractor: object, n: object, provenance: object) -> None:
    """Compare the types of what a reference says of itself.

    Raises:
        TypeError: something is of another type.
    """
    counted = n is None or (isinstance(n, int) and not isinstance(n, bool) and n > 0)
    if not (isinstance(name, str) and isinstance(extractor, str) and isinstance(provenance, dict) and counted):
        raise TypeError("its metadata are of other types")


def _check(path: Path, extractor: str, pairs: dict[str, Any], pooled: Tensor | None) -> None:
    """Refuse statistics no metric could use, naming the file and the sizes."""
    if extractor not in EXTRACTORS:
        raise UserError(f"{path} is of extractor {extractor!r}; there are {', '.join(EXTRACTORS)}")
    for kind, (mu, sigma) in pairs.items():
        if mu is not None:
            check_gaussian(f"{path} ({kind})", EXTRACTORS[extractor].sizes[kind], mu, sigma)
    size = EXTRACTORS[extractor].sizes["pooled"]
    if pooled is not None and (pooled.ndim != 2 or pooled.shape[1] != size or not pooled.isfinite().all()):
        raise UserError(f"{path}: pooled features of shape {tuple(pooled.shape)} must be finite and [images, {size}]")


def check_gaussian(where: str, size: int, mu: Tensor, sigma: Tensor) -> None:
    """Refuse a mean and covariance of another size, not finite, not symmetric or not positive semidefinite.

    Raises:
        UserError: with `where` and what was found.
    """
    if mu.shape != (size,) or sigma.shape != (size, size):
        found = f"mu {tuple(mu.shape)}, sigma {tuple(sigma.shape)}"
        raise UserError(f"{where} has {found}; the extractor gives ({size},), ({size}, {size})")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"{where} holds values that are not finite; it is damaged, make it again")
    if float((sigma - sigma.T).abs().max()) > 1e-5 * float(sigma.abs().max()):
        raise UserError(f"{where}: sigma ({size}, {size}) is not symmetric; it is not a covariance")
    lowest, trace = float(torch.linalg.eigvalsh(sigma.double()).min()), float(sigma.trace())
    if lowest < -1e-6 * trace:
        raise UserError(
            f"{where}: sigma ({size}, {size}) has eigenvalue {lowest:.3g}, trace {trace:.3g}; not a covariance"
        )


def find(dataset: str, extractor: str, cache_dir: Path) -> Reference:
    """The reference of a data set: the shipped file, else the cache.

    Raises:
        UserError: there is none (with the places looked in and the command that makes it), or it is unusable.
    """
    looked = places(dataset, extractor, cache_dir)
    for place in looked:
        if place.is_file():
            reference = load(place)
            if reference.extractor != extractor:
                raise UserError(f"{place} is of extractor {reference.extractor}, the metric uses {extractor}")
            return reference
    command = f"qdit-refs build IMAGES --name {dataset} --extractor {extractor}"
    if extractor == "inception":
        command = f"qdit-refs import VIRTUAL_imagenet256_labeled.npz --name {dataset} (ADM's file), or {command}"
    where = ", ".join(str(p) for p in looked)
    raise UserError(f"no {extractor} reference statistics of {dataset}: looked in {where}; make them: {command}")
