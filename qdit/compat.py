"""Make `import torchvision` work beside a CPU build of torch. Import this module before anything that needs it.

PyPI's torchvision is a CUDA build. Its compiled library cannot load beside a CPU torch, and the import then dies with
`operator torchvision::nms does not exist`, taking torch_fidelity, timm and diffusers' DiT along. Declaring the two
operators whose absence raises is enough for everything that is pure Python (transforms, models); `torchvision.ops.nms`
and `torchvision.io` stay unusable. Where the library loads, nothing is done.

torchao, where it is installed, is imported by diffusers, and speaks at every import; this module has it be silent.
"""

import importlib.util
import logging
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # kept alive: the schemas vanish with it


def cure() -> None:
    """Import torchvision, declaring its missing operators first if its compiled library cannot load."""
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(operator + _SCHEMA)
        importlib.import_module("torchvision")


def quieten() -> None:
    """Silence what torchao 0.18 prints where diffusers imports it: missing kernels of GPUs, names that are old."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


cure()
quieten()
