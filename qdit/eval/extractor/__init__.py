"""Feature extractors by name; the name is part of every metric's name, and `fid` means `inception` and nothing else."""

from qdit.errors import UserError
from qdit.eval.extractor.common import FeatureExtractor
from qdit.eval.extractor.inception import Inception
from qdit.eval.extractor.lite0 import Lite0

EXTRACTORS: dict[str, type[FeatureExtractor]] = {"lite0": Lite0, "inception": Inception}


def make_extractor(name: str, weights: str | None = None, allow_download: bool = False) -> FeatureExtractor:
    """An extractor that is not loaded yet.

    Args:
        name: `lite0` or `inception`.
        weights: path of the weight file; None searches the usual places.
        allow_download: whether `load` may fetch a missing file.

    Raises:
        UserError: the name is unknown.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor={name!r} is unknown; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights=weights, allow_download=allow_download)
