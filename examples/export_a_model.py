"""Write a quantized model for others: for diffusers with torchao, where no qdit is needed, and for diffusers with qdit.

python examples/export_a_model.py            needs qdit[export]
"""

from pathlib import Path

import torch
from diffusers import DiTPipeline

import qdit

STEPS = 20
OUTPUT = Path("exported")

pipe = qdit.embedded()
pipe.set_progress_bar_config(disable=True)
# torchao says weights of 8 bits a row and inputs by the token; `qdit-export --list` has what each recipe needs for it.
qdit.quantize(pipe.transformer, "rtn", "weight.grid=symmetric", bits="w8a8")

noise = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "np"}
wanted = pipe([1], generator=torch.manual_seed(0), **noise).images
for target in ("torchao", "diffusers"):
    folder = OUTPUT / target
    qdit.export(pipe, folder, to=target)  # with a model card; push="owner/name" uploads it, too
    again = DiTPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    found = again([1], generator=torch.manual_seed(0), **noise).images
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    print(f"{target}: {size:.1f} MB, largest difference of a pixel {255 * abs(found - wanted).max():.1f} of 255")
