"""Make references from images or from ADM's npz, and the real-against-real floor. `qdit-refs` is the command line.

ADM's centre crop (guided-diffusion `image_datasets.py`): halve with a box filter while the short side is at least
twice the target, resize the short side bicubically, crop the centre. Moments are streamed and merged, so a data set
never has to fit in memory; of large ones the features of `KEPT` evenly spread images are kept for KID, precision and
recall.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qdit import __version__
from qdit.errors import UserError
from qdit.eval.base import Features
from qdit.eval.cmmd import cmmd
from qdit.eval.extractor import EXTRACTORS, FeatureExtractor
from qdit.eval.inception_score import inception_score
from qdit.eval.kid import kernel_distance
from qdit.eval.reference import Reference, check_gaussian, wrong_size
from qdit.eval.statistics import Moments, frechet_distance
from qdit.storage.arrays import MOST_PIXELS, array_names, read_arrays, read_image
from qdit.storage.digest import sha256
from qdit.storage.progress import progress
from qdit.storage.reading import size_of
from qdit.storage.walk import entries_below

KEPT = 10_000
BATCH = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MEND = "mend it, or take it away"
_AGAIN = "copy or download it again"


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to a square of `size` px."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


class Images:
    """Images of a folder (all depths, sorted by path) or of an npz (`arr_0` or `images`), as uint8 [H, W, 3]."""

    def __init__(self, path: Path, size: int | None = None, files: Sequence[Path] | None = None) -> None:
        """Find the images, or take these files of the folder; with `size` each gets ADM's centre crop.

        Raises:
            UserError: there is nothing there, or the npz holds no uint8 RGB images, or the size is below 1 px.
        """
        if size is not None and size < 1:
            raise UserError(f"--size {size} is no side of an image; give the pixels of the model's images, such as 256")
        self.path, self.size = path, size
        self.items: np.ndarray | list[Path] = _arrays(path) if path.suffix == ".npz" else list(files or _files(path))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image.

        Raises:
            UserError: it cannot be read, or is too long and thin to be cropped to the size.
        """
        item = self.items[index]
        image = read_image(item, _MEND) if isinstance(item, Path) else item
        if self.size is None:
            return image
        height, width = image.shape[:2]
        if height * width * (self.size / min(height, width)) ** 2 > MOST_PIXELS:
            where = item if isinstance(item, Path) else f"image {index} of {self.path}"
            raise UserError(f"{where} has {width} x {height} pixels, too long and thin to be cropped; {_MEND}")
        return np.asarray(adm_crop(Image.fromarray(image), self.size))

    def batches(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """Chosen images, uint8 [b, 3, H, W].

        Raises:
            UserError: images of different sizes, without a size to crop them to.
        """
        for start in range(0, len(indices), BATCH):
            images = [self[i] for i in indices[start : start + BATCH]]
            if len({image.shape for image in images}) > 1:
                shapes = sorted({image.shape[:2] for image in images})
                raise UserError(f"{self.path} holds images of different sizes ({shapes[0]}, {shapes[1]}); give --size")
            yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _arrays(path: Path) -> np.ndarray:
    names = array_names(path, _AGAIN)
    found = next((key for key in ("arr_0", "images") if key in names), None)
    if found is None:
        raise UserError(f"{path} has no images: it holds {', '.join(names)}; arr_0 or images is wanted")
    (images,) = read_arrays(path, [found], _AGAIN)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise UserError(f"{path}: {found} is {images.dtype} {images.shape}; uint8 [n, height, width, 3] is wanted")
    return images


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        size_of(path, f"give an npz, or a folder with images ({', '.join(SUFFIXES)})")
    entries = sorted(entries_below(path)) if path.is_dir() else []
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    for file in files:
        size_of(file, _MEND)  # a link to nothing, or a pipe, that is left out in silence would change numbers
    if not files:
        raise UserError(f"{path} is not an npz and not a folder with images ({', '.join(SUFFIXES)})")
    return files


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
