"""Quantize a diffusers pipeline in memory, measure it against itself, and save it where diffusers finds it again.

python examples/quantize_a_pipeline.py
"""

from pathlib import Path

import qdit

N, STEPS = 32, 20
OUTPUT = Path("quantized")

pipe = qdit.embedded()  # or DiTPipeline.from_pretrained("facebook/DiT-XL-2-256"), PixArt, SD3, FLUX.1, Latte, Wan
pipe.set_progress_bar_config(disable=True)

# Trajectories of the pipeline itself in full precision, and the recipe, by its name, which takes points of them.
data = qdit.calibrate(pipe, num_samples=N, steps=STEPS)
qdit.quantize(pipe.transformer, "quarot", f"calibration.num_samples={2 * N}", bits="w4a8", data=data)

# Paired with full precision on the same noise, with standard errors; and what the model costs, everything counted.
print(qdit.fidelity(pipe, n=N))
print(qdit.cost(pipe.transformer))
print(qdit.summary(pipe.transformer).head())

quantized = pipe([1], num_inference_steps=STEPS, output_type="pil").images[0]
with qdit.full_precision(pipe.transformer):
    original = pipe([1], num_inference_steps=STEPS, output_type="pil").images[0]

OUTPUT.mkdir(exist_ok=True)
quantized.save(OUTPUT / "quantized.png")
original.save(OUTPUT / "original.png")
pipe.save_pretrained(OUTPUT / "pipeline")  # later: import qdit; DiTPipeline.from_pretrained("quantized/pipeline")
print(f"{OUTPUT}: two images and the pipeline")
