"""Make references from images or from ADM's npz, and the real-against-real floor. `qdit-refs` is the command line.

Moments are streamed and merged, so a data set never has to fit in memory; of large ones the features of `KEPT` evenly
spread images are kept for KID, precision and recall.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from qdit import __version__
from qdit.errors import UserError
from qdit.eval.base import Features
from qdit.eval.cmmd import cmmd
from qdit.eval.extractor import EXTRACTORS, FeatureExtractor
from qdit.eval.image_files import BATCH, Images
from qdit.eval.inception_score import inception_score
from qdit.eval.kid import kernel_distance
from qdit.eval.reference import Reference, check_gaussian, wrong_size
from qdit.eval.statistics import Moments, frechet_distance
from qdit.storage.arrays import array_names, read_arrays
from qdit.storage.digest import sha256
from qdit.storage.progress import progress

KEPT = 10_000
_AGAIN = "copy or download it again"


def extract(images: Images, indices: Sequence[int], extractor: FeatureExtractor) -> Iterator[Features]:
    """Features of chosen images, batch by batch."""
    total = -(-len(indices) // BATCH)
    for batch in progress(images.batches(indices), total=total, desc=extractor.name, leave=False):
        yield extractor(batch)


def build(images: Images, name: str, extractor: FeatureExtractor) -> Reference:
    """The reference of a set of images.

    Raises:
        UserError: weights or images cannot be used, or there are fewer than two images.
    """
    n = len(images)
    if n < 2:
        raise UserError(f"{images.path} holds one image; a covariance needs at least two")
    if "pooled" not in extractor.sizes:
        raise UserError(f"--extractor {extractor.name} has no pooled features; give lite0, inception or clip_l14_336")
    kept = torch.zeros(n, dtype=torch.bool)
    kept[torch.linspace(0, n - 1, min(n, KEPT)).round().long()] = True
    moments: list[Moments] = []
    pooled: list[torch.Tensor] = []
    start = 0
    size = "{}x{}".format(*images[0].shape[:2])
    for features in extract(images, range(n), extractor):
        batch = [Moments.of(features[kind]) for kind in ("pooled", "spatial") if kind in features]
        moments = [a.merge(b) for a, b in zip(moments, batch, strict=True)] if moments else batch
        stop = start + len(features["pooled"])
        pooled.append(features["pooled"][kept[start:stop]])
        start = stop
    whole, spatial = moments[0], moments[1] if moments[1:] else None  # a CLIP has none
    crop = f"adm {images.size}" if images.size else "none"
    return Reference(
        name=name,
        extractor=extractor.name,
        mu=whole.mean,
        sigma=whole.covariance(),
        mu_s=spatial.mean if spatial else None,
        sigma_s=spatial.covariance() if spatial else None,
        pooled=torch.cat(pooled),
        n=n,
        provenance=_provenance(images.path)
        | {"crop": crop, "image_size": size, "extractor_sha256": extractor.weights_sha256},
    )


def _provenance(source: Path) -> dict[str, str]:
    about = {"source": source.name, "qdit": __version__}
    return about | ({"source_sha256": sha256(source)} if source.is_file() else {})


def import_adm(path: Path, name: str, extractor: FeatureExtractor) -> Reference:
    """ADM's precomputed statistics; features of its images (for precision, recall, KID) where the weights are present.

    Statistics of mu and sigma alone, as other tools keep them, serve FID.

    Raises:
        UserError: the file lacks arrays, or they are not means and covariances of Inception's sizes.
    """
    found = array_names(path, _AGAIN)
    spatial = not {"mu_s", "sigma_s"}.isdisjoint(found)
    keys = ("mu", "sigma", *(("mu_s", "sigma_s") if spatial else ()))
    if missing := [key for key in keys if key not in found]:
        held = ", ".join(found)
        raise UserError(f"{path} lacks {', '.join(missing)} (it holds {held}); use qdit-refs build for images")
    arrays = read_arrays(path, keys, _AGAIN)
    values = {key: _numbers(path, key, array) for key, array in zip(keys, arrays, strict=True)}
    mu, sigma, mu_s, sigma_s = (values.get(key) for key in ("mu", "sigma", "mu_s", "sigma_s"))
    assert mu is not None
    assert sigma is not None
    check_gaussian(f"{path} (mu, sigma)", EXTRACTORS["inception"].sizes["pooled"], mu, sigma)
    if mu_s is not None and sigma_s is not None:
        check_gaussian(f"{path} (mu_s, sigma_s)", EXTRACTORS["inception"].sizes["spatial"], mu_s, sigma_s)
    pooled, provenance = None, _provenance(path)
    if "arr_0" in found and not extractor.preflight():
        images = Images(path)
        provenance["image_size"] = "{}x{}".format(*images[0].shape[:2])
        pooled = torch.cat([f["pooled"] for f in extract(images, range(len(images)), extractor)])
        provenance["extractor_sha256"] = extractor.weights_sha256
    return Reference(
        name=name,
        extractor="inception",
        mu=mu,
        sigma=sigma,
        mu_s=mu_s,
        sigma_s=sigma_s,
        pooled=pooled,
        n=None,
        provenance=provenance,
    )


def _numbers(path: Path, key: str, array: np.ndarray) -> torch.Tensor:
    """An array as float64."""
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {key} is {array.dtype} {array.shape}; numbers are wanted; {_AGAIN}")
    return torch.from_numpy(array.astype(np.float64))


def floor(
    images: Images, reference: Reference, extractor: FeatureExtractor, sizes: Sequence[int], draws: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """What a perfect model would score at each n: real images drawn with replacement, against the reference.

    Drawing with replacement makes a draw n independent samples of exactly the distribution the reference describes;
    without, a draw of nearly all of a small data set would score better than any model can. KID comes out below zero by
    (mean k(x, x) - mean k(x, y)) / (images of the reference), because drawn images also stand in the reference.

    Returns:
        {n: {metric: {"mean", "std"}}} over `draws` draws, n as text, metrics under the names they have in results.

    Raises:
        UserError: fewer than two draws, or two images per draw; a seed below 0; or images of another size.
    """
    if problems := wrong_size(reference, *images[0].shape[:2]):
        raise UserError(*problems)
    if draws < 2:
        raise UserError(f"--draws {draws} gives no spread; use at least 2")
    if min(sizes) < 2:
        raise UserError(f"--n {min(sizes)} gives no covariance; use at least 2")
    if seed < 0:
        raise UserError(f"--seed {seed}; a whole number of at least 0 is needed")
    rng = np.random.default_rng(seed)
    drawn = {n: rng.integers(len(images), size=(draws, n)) for n in sizes}
    needed = np.unique(np.concatenate([d.ravel() for d in drawn.values()]))
    parts = list(extract(images, needed.tolist(), extractor))
    features = {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
    report = {}
    for n, index in drawn.items():
        rows = torch.from_numpy(np.searchsorted(needed, index))
        scores = [_scores({kind: x[row] for kind, x in features.items()}, reference) for row in rows]
        columns = {metric: np.array([score[metric] for score in scores]) for metric in scores[0]}
        report[str(n)] = {m: {"mean": float(v.mean()), "std": float(v.std(ddof=1))} for m, v in columns.items()}
    return report


def _scores(features: Features, reference: Reference) -> dict[str, float]:
    """Distribution metrics of a draw, under the names they have in results."""
    suffix = "" if reference.extractor == "inception" else f"_{reference.extractor}"
    pooled = Moments.of(features["pooled"])
    scores = {"fid": frechet_distance(reference.mu, reference.sigma, pooled.mean, pooled.covariance())}
    if "logits" in features:
        scores["is"] = inception_score(features["logits"]).full
    if reference.mu_s is not None and reference.sigma_s is not None:
        spatial = Moments.of(features["spatial"])
        scores["sfid"] = frechet_distance(reference.mu_s, reference.sigma_s, spatial.mean, spatial.covariance())
    if reference.pooled is not None:
        scores["kid"] = kernel_distance(features["pooled"], reference.pooled, reference.kernel_within).full
    named = {metric + suffix: value for metric, value in scores.items()}
    if reference.extractor == "clip_l14_336" and reference.pooled is not None:
        named["cmmd"] = cmmd(features["pooled"], reference.pooled).full
    return named
