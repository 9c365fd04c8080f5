"""The 2015 Inception of ADM's evaluator, through torch-fidelity's port; the only extractor behind plain `fid`.

As guided-diffusion's `evaluations/evaluator.py`: TF1 bilinear resize to 299 px inside the network, pool3 (2048), logits
without bias (1008), and ADM's sFID features: the first 7 channels of `Mixed_6d.branch1x1`, flattened channels LAST,
(17, 17, 7) to 2023. The other order gives sFID 299 instead of 6 against ADM's statistics, and nothing else shows the
mistake. All three come from one pass. Left out: TensorFlow. Nothing is downloaded unless the user allows it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdit.errors import Advised, UserError
from qdit.eval.extractor.common import FeatureExtractor, channels_last, other_file
from qdit.nn.outputs import outputs_of
from qdit.storage.digest import sha256

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_PREFIX = "6726825d"
VARIABLE = "QDIT_INCEPTION_WEIGHTS"


class MissingWeights(UserError):
    """The Inception weights are not on this machine, or the file is another one."""


@contextmanager
def _given_weights(port: Any, state: dict[str, Tensor]) -> Iterator[None]:
    """Let torch-fidelity's constructor use tensors we loaded: its own loading unpickles the file."""
    original = port.load_state_dict_from_url
    port.load_state_dict_from_url = lambda *_, **__: state
    try:
        yield
    finally:
        port.load_state_dict_from_url = original


class ADMInception(nn.Module):
    """torch-fidelity's Inception with ADM's spatial features added through a hook."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        from torch_fidelity import feature_extractor_inceptionv3 as port  # only where it is used: its imports are slow

        super().__init__()
        with _given_weights(port, state):
            self.network = port.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[b, 3, H, W] uint8 to pooled [b, 2048], spatial [b, 2023], logits without bias [b, 1008]."""
        with outputs_of({"Mixed_6d.branch1x1": self.network.get_submodule("Mixed_6d.branch1x1")}) as seen:
            pooled, logits = self.network(images)
        return {"pooled": pooled, "spatial": channels_last(seen["Mixed_6d.branch1x1"]), "logits": logits}


class Inception(FeatureExtractor):
    """Inception-2015. Weights: `weights`, else $QDIT_INCEPTION_WEIGHTS, else torch's hub directory."""

    name = "inception"
    sizes = {"pooled": 2048, "spatial": 2023, "logits": 1008}  # noqa: RUF012 - never written to

    def _hub_file(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / FILE

    def _file(self) -> Path:
        """The first place that is set; a place the user names is final, even if nothing is there."""
        named = self.weights or os.environ.get(VARIABLE)
        return Path(named).expanduser() if named else self._hub_file()

    def preflight(self) -> list[str]:
        """One message if the file is missing (and may not be downloaded) or its sha256 is another."""
        path = self._file()
        if path.is_file():
            return [f"MissingWeights: {problem}" for problem in other_file(path, SHA256_PREFIX)]
        if self.allow_download and path == self._hub_file():
            return []
        problem = (
            "MissingWeights: Inception-2015 weights for FID, sFID, IS, KID, precision and recall not found.\n"
            f"    looked in: inception_weights ({self.weights or 'unset'}), ${VARIABLE} "
            f"({os.environ.get(VARIABLE, 'unset')}), {self._hub_file()}\n"
            f"    get it on a machine with network: {URL}, and copy it there"
        )
        run = "or run eval=fidelity (offline extractor) or eval=paired (no extractor), or set allow_download=true"
        folder = "or give --metrics of the offline extractor (fid_lite0) or of none (psnr)"
        return [Advised(problem, run=run, folder=folder)]

    @property
    def weights_sha256(self) -> str:
        """Digest of the weight file.

        Raises:
            MissingWeights: there is none.
        """
        if problems := self.preflight():
            raise MissingWeights(*problems)
        self._download_if_missing()
        return sha256(self._file())

    def _download_if_missing(self) -> None:
        """Fetch the file into torch's hub directory; `preflight` has established that the user allows it."""
        path = self._file()
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise MissingWeights(f"cannot download {URL}: {error}; copy it to {path}") from error

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            MissingWeights: the file is missing, is not the right one, or cannot be downloaded.
        """
        if problems := self.preflight():
            raise MissingWeights(*problems)
        self._download_if_missing()
        return ADMInception(torch.load(self._file(), map_location="cpu", weights_only=True))
