"""The digests of records that were collected for others to read (`experiments/comparison/collect.py`)."""

import json
from functools import lru_cache
from pathlib import Path

from qdit.storage.digest import sha256
from qdit.storage.seal import Broken

DIGESTS = "digests.json"
"""In a study's folder: SHA-256 of files by their path in it."""


def check(file: Path, study: Path) -> None:
    """Compare a file with the digest that its study's folder has of it, if it has one.

    Raises:
        Broken: it is another one.
    """
    digests = study / DIGESTS
    if not digests.is_file():
        return
    wanted = _read(digests, digests.stat().st_mtime_ns).get(file.relative_to(study).as_posix())
    if wanted is not None and wanted != sha256(file):
        raise Broken(f"its digest is not that of {DIGESTS}")


@lru_cache(maxsize=16)
def _read(path: Path, _modified: int) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Broken(f"{DIGESTS} beside it is no JSON") from error
    return found if isinstance(found, dict) else {}
