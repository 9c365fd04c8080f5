"""Feature extractors by name; the name is part of every metric's name, and `fid` means `inception` and nothing else."""

from collections.abc import Callable, Mapping

import torch

from qdit.errors import UserError
from qdit.eval.extractor import clip
from qdit.eval.extractor.common import FeatureExtractor
from qdit.eval.extractor.dino import DINO
from qdit.eval.extractor.i3d import I3D
from qdit.eval.extractor.inception import Inception
from qdit.eval.extractor.lite0 import Lite0
from qdit.eval.extractor.lpips import LPIPSVGG, LPIPSAlex
from qdit.eval.extractor.musiq import MUSIQ
from qdit.eval.extractor.preference import HPS, Pick
from qdit.eval.extractor.raft import RAFT, RAFTStatic, RAFTWarp

OF_CLIP = (
    *(clip.CLIPB32, clip.CLIPL14, clip.CLIPL14At336, clip.CLIPB32InVBench, clip.CLIPL14InVBench),
    *(clip.CLIPB32InEvalCrafter, HPS, Pick),
)
EXTRACTORS: dict[str, type[FeatureExtractor]] = {"lite0": Lite0, "inception": Inception}
EXTRACTORS |= {
    each.name: each for each in (DINO, *OF_CLIP, RAFT, RAFTStatic, RAFTWarp, MUSIQ, I3D, LPIPSAlex, LPIPSVGG)
}


def make_extractor(name: str, weights: str | None = None, allow_download: bool = False) -> FeatureExtractor:
    """An extractor that is not loaded yet.

    Args:
        name: of `EXTRACTORS`.
        weights: path of the weight file; None searches the usual places.
        allow_download: whether `load` may fetch a missing file.

    Raises:
        UserError: the name is unknown.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor={name!r} is unknown; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights=weights, allow_download=allow_download)


def loading(
    extractors: Mapping[str, FeatureExtractor], device: str | torch.device
) -> Callable[[str], FeatureExtractor]:
    """What gives these extractors by name, each loaded on a device when it is first asked for."""
    return lambda name: extractors[name].loaded(device)
