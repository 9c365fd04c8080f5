"""What a metric's number depends on besides the samples, as a digest; and where reference statistics lie.

A record keeps the digest with each metric, so that a number made with another reference is computed again and never
shares a column of a table with the new ones. Imports no torch: a finished run is recognised at once.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from qdit.names import component
from qdit.store import digest

ASSETS = Path(__file__).resolve().parent / "assets"
FINDING = ("weights", "allow_download")
"""Keys of a metric that say how a file is found; which file it must be, the extractor's name says and checks."""
WITHOUT_REFERENCE = ("qdit.eval.distribution.InceptionScore",)
"""Metrics with an extractor that read no reference."""


def settings(node: dict[str, Any], dataset: str, cache_dir: Path) -> str:
    """Eight hex digits of a metric's config and of the reference file that it would be computed with.

    Args:
        node: the metric's resolved config, `_target_` included.
        dataset: name of the data set's reference, `dataset.reference`.
        cache_dir: where `qdit-refs` keeps references.
    """
    content = None
    if (extractor := node.get("extractor")) and node.get("_target_") not in WITHOUT_REFERENCE:
        found = next((place for place in places(dataset, extractor, cache_dir) if place.is_file()), None)
        content = sha256(found) if found else None
    return digest({"metric": {k: v for k, v in node.items() if k not in FINDING}, "reference": content})


def search_settings(search: dict[str, Any], dataset: str, cache_dir: Path) -> dict[str, Any]:
    """A search's config with the metric of its objective, if it has one, as the digest that `settings` gives."""
    if (objective := search.get("objective")) is None:
        return search
    return search | {"objective": objective | {"metric": settings(objective["metric"], dataset, cache_dir)}}


def places(dataset: str, extractor: str, cache_dir: Path) -> list[Path]:
    """Where the reference of a data set may lie, the first choice first: the shipped file, then the cache."""
    return [_asset(dataset, extractor), cached(dataset, extractor, cache_dir)]


def shipped(dataset: str, extractor: str) -> bool:
    """Whether the reference of a data set comes with qdit."""
    return _asset(dataset, extractor).is_file()


def _asset(dataset: str, extractor: str) -> Path:
    return ASSETS / component(dataset, "dataset.reference") / component(f"reference-{extractor}.safetensors", "a file")


def cached(dataset: str, extractor: str, cache_dir: Path) -> Path:
    """Where `qdit-refs` puts a reference."""
    return cache_dir / "references" / component(f"{dataset}-{extractor}.safetensors", "the name of a reference")


def sha256(path: Path) -> str:
    """Hex digest of a file, read again only when its size or time has changed."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
