"""A process without qdit: stock diffusers reads folders, and says what it found and what they compute."""

import os
import subprocess
import sys
from pathlib import Path

import qdit
from qdit import compat

ROOT = Path(qdit.__file__).parents[1]
READ = """
import numpy, sys, torch
from diffusers import DiTPipeline
from safetensors.torch import save_file

sys.modules["qdit"] = None  # from now on importing it fails
try:
    import qdit
except ImportError:
    pass
else:
    raise SystemExit("qdit is here")
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pipe = DiTPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    found = {}
    for name, weight in pipe.transformer.named_parameters():
        if hasattr(weight, "qdata"):
            parts = {"codes": weight.qdata, "scale": weight.scale, "zero": weight.zero_point}
            found |= {f"{name}/{part}": tensor for part, tensor in parts.items() if tensor is not None}
    save_file({name: tensor.clone() for name, tensor in found.items()}, folder + ".safetensors")
    made = pipe([1, 7], guidance_scale=1.0, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np")
    numpy.save(folder + ".npy", made.images)
"""


def read_by_stock_diffusers(folders: list[Path]) -> None:
    """Write `FOLDER.npy`, the images, and `FOLDER.safetensors`, the codes of quantized weights, of pipelines."""
    script = Path(str(compat.__file__)).read_text() + READ  # a stock process needs the cure of torchvision, too
    kept = [path for path in sys.path if path and Path(path).resolve() not in (ROOT, ROOT / "tests")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(kept)}
    words = [sys.executable, "-c", script, *map(str, folders)]
    done = subprocess.run(words, env=environment, cwd=folders[0].parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
