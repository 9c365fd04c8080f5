"""Weight files that users bring: where they are looked for, and what is said of one that is missing. Imports no torch.

Sizes and licences are second-hand, from papers, notes and memory: read what stands with the release. The files were not
available here, so their digests are not known, but where the name has a part of it: a record's settings hold the digest
of the file that was used.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from qdit.storage.digest import content_digest, sha256
from qdit.storage.walk import files_below

VARIABLE = "QDIT_WEIGHTS"
"""The environment variable that names a folder of weight files."""


@dataclass(frozen=True)
class WeightFile:
    """A file, or a folder as transformers saves it, by the name that it is published under."""

    name: str
    size: str
    licence: str
    source: str
    sha256_prefix: str | None = None

    def places(self, given: str | None = None) -> list[Path]:
        """Where it is looked for: a given file or folder alone, else the folder of `VARIABLE`, else torch's own."""
        if given is not None:
            path = Path(given).expanduser()
            return [path / self.name, path] if path.is_dir() else [path]
        own = os.environ.get(VARIABLE)
        home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
        places = [Path(own).expanduser() / self.name] if own else []
        return [*places, Path(home).expanduser() / "hub" / "checkpoints" / self.name]

    def find(self, given: str | None = None) -> Path | None:
        """The first place where it is; None if it is nowhere."""
        return next((place for place in self.places(given) if self._is_there(place)), None)

    def _is_there(self, place: Path) -> bool:
        return (place / "config.json").is_file() if "." not in self.name else place.is_file()

    def missing(self, given: str | None = None) -> list[str]:
        """A sentence if it is nowhere: what, how large, whose, where it was looked for, and where it is from."""
        if self.find(given) is not None:
            return []
        looked = ", ".join(map(str, self.places(given)))
        unset = "" if given or os.environ.get(VARIABLE) else f"; ${VARIABLE}, a folder of such files, is unset"
        return [
            f"MissingWeights: {self.name} ({self.size}, {self.licence}; both second-hand) not found.\n"
            f"    looked in: {looked}{unset}\n    from: {self.source}"
        ]


WEIGHTS = {
    "dino": WeightFile(
        "dino_vitbase16_pretrain.pth",
        "343 MB",
        "Apache-2.0",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ),
    "clip_b32": WeightFile(
        "clip-vit-base-patch32", "about 600 MB", "MIT", "https://huggingface.co/openai/clip-vit-base-patch32"
    ),
    "clip_l14": WeightFile(
        "clip-vit-large-patch14", "about 1.7 GB", "MIT", "https://huggingface.co/openai/clip-vit-large-patch14"
    ),
    "clip_l14_336": WeightFile(
        "clip-vit-large-patch14-336", "about 1.7 GB", "MIT", "https://huggingface.co/openai/clip-vit-large-patch14-336"
    ),
    "hps_v21": WeightFile("HPS_v2.1_compressed.pt", "about 4 GB", "Apache-2.0", "https://huggingface.co/xswu/HPSv2"),
    "pick_score": WeightFile("PickScore_v1", "about 4 GB", "MIT", "https://huggingface.co/yuvalkirstain/PickScore_v1"),
    "laion_head": WeightFile(
        "sa_0_4_vit_l_14_linear.pth", "4 kB", "MIT", "https://github.com/LAION-AI/aesthetic-predictor"
    ),
    "raft": WeightFile("raft-things.pth", "21 MB", "BSD-3-Clause", "https://github.com/princeton-vl/RAFT"),
    "musiq": WeightFile(
        "musiq_spaq_ckpt-358bb6af.pth",
        "about 109 MB",
        "network Apache-2.0, pyiqa PolyForm-Noncommercial",
        "https://github.com/chaofengc/IQA-PyTorch/releases",
        "358bb6af",
    ),
    "lpips_alex": WeightFile(
        "alexnet-owt-7be5be79.pth", "244 MB", "BSD-3-Clause", "https://download.pytorch.org/models", "7be5be79"
    ),
    "lpips_vgg": WeightFile(
        "vgg16-397923af.pth", "553 MB", "BSD-3-Clause", "https://download.pytorch.org/models", "397923af"
    ),
    "i3d": WeightFile(
        "i3d_torchscript.pt", "about 50 MB", "Apache-2.0", "https://github.com/universome/stylegan-v (its FVD)"
    ),
}
"""By the name of the extractor that needs it; the flavours of CLIP for VBench have the same files."""


READ = (".safetensors", ".json", ".txt")
"""How names of the files end that are read in a folder; others may lie beside them, the same weights in other forms."""


def brought_digest(path: Path) -> str:
    """Digest of a file that the user brings, or of what is read in a folder; hashed once a process while they stay."""
    if path.is_file():
        return sha256(path)
    return content_digest([file for file in files_below(path) if file.name.endswith(READ)], path)


def weight_file(extractor: str) -> WeightFile | None:
    """The file that an extractor needs of the user, in whatever flavour; None where it has its own way."""
    flavours = ("_vbench", "_evalcrafter", "_warp", "_static")
    return WEIGHTS.get(next((extractor.removesuffix(each) for each in flavours if extractor.endswith(each)), extractor))
