"""Score the embedded model against the real data and write what was reached into its card.

    python experiments/emoji_dit/evaluate.py --steps 5000 --batch 64      # about ten minutes on two cores

The full-precision run at N = 1,024 gives fid_lite0 and kid_lite0; the floor is the same number for 1,024 real images
drawn at random (qdit/assets/emoji/floor-lite0.json). A grid of 64 samples goes to this folder.
"""

import argparse
import json
from pathlib import Path

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import numpy as np
import torch
from diffusers import AutoencoderKL
from hydra import compose, initialize_config_dir

from qdit.assets import CONF
from qdit.eval.samples import SampleSet
from qdit.plots.run import sample_grid
from qdit.runs.run import run

ASSETS = Path("qdit/assets/emoji")
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# emoji-dit: the embedded model of qdit

A class-conditional latent diffusion transformer of 32×32 emoji, small enough to ship and to sample on a CPU. It is here
so that quantization methods can be run, compared and tested offline. It is not meant for making emoji.

| | |
|---|---|
| data | {images:,} Noto emoji (Google, Apache-2.0) of npm's emoji-datasource-google 16.0.0, 99 subcategories |
| autoencoder | `AutoencoderKL`, 32×32×3 → 8×8×4, {vae_parameters:.1f} M parameters, {psnr:.1f} dB PSNR on the data |
| transformer | `DiTTransformer2DModel`, 8 blocks of width 256, 4 heads, 64 tokens, {dit_parameters:.1f} M parameters |
| diffusion | epsilon prediction, 1,000 steps, linear betas; label dropout 0.1 (null class 99) |
| training | autoencoder 5,500 steps of 48 by AdamW; DiT {steps:,} of {batch}, 5,000 by AdamW, then Muon; EMA |
| machine | two CPU cores, bf16 autocast |
| recipe | `experiments/emoji_dit/train.py` |

Reached with the default sampler (DDIM, 20 steps, guidance 2), {n:,} samples with the data's class frequencies,
extractor EfficientNet-Lite0 at 128 px (`fid_lite0` is not FID):

| | samples | {n:,} real images | ratio |
|---|---|---|---|
| fid_lite0 | {fid:.1f} ± {fid_se:.1f} | {floor:.1f} ± {floor_sd:.1f} | {ratio:.2f} |
| kid_lite0 · 10³ | {kid:.2f} ± {kid_se:.2f} | {kid_floor:.2f} | |

The scores of the reconstructed data (what the autoencoder alone costs) at the same N: fid_lite0 {vae_fid:.1f}.
The model has seen every image many times; most samples resemble training images.
"""


def parameters(folder: str) -> float:
    from safetensors.torch import load_file

    return (
        sum(t.numel() for f in (ASSETS / "model" / folder).glob("*.safetensors") for t in load_file(f).values()) / 1e6
    )


def reconstruct(images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Images [n, 3, 32, 32] uint8 through the autoencoder, and the mean PSNR in dB."""
    vae = AutoencoderKL.from_pretrained(ASSETS / "model" / "vae", torch_dtype=torch.float32).eval()
    output = []
    with torch.no_grad():
        for chunk in (images.float() / 127.5 - 1).split(256):
            output.append(
                (127.5 * vae.decode(vae.encode(chunk).latent_dist.mode()).sample + 128).clamp(0, 255).to(torch.uint8)
            )
    made = torch.cat(output)
    mse = ((made.float() - images.float()) / 255).square().flatten(1).mean(1)
    return made, (-10 * mse.log10()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of the DiT, for the card")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("-n", type=int, default=1024)
    args = parser.parse_args()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["quantizer=fp", "study=embedded", f"num_samples={args.n}", "batch_size=64"]
        record = run(compose("config", words))
    metrics = record["metrics"]
    floor = json.loads((ASSETS / "floor-lite0.json").read_text())["floor"][str(args.n)]
    images = torch.from_numpy(np.load(ASSETS / "emoji32.npz")["images"]).permute(0, 3, 1, 2)
    chosen = torch.from_numpy(np.random.default_rng(0).choice(len(images), args.n))
    made, psnr = reconstruct(images)
    fid, kid = metrics["fid_lite0"], metrics["kid_lite0"]
    card = CARD.format(
        **{"images": len(images), "vae_parameters": parameters("vae"), "dit_parameters": parameters("transformer")},
        **{"psnr": psnr, "steps": args.steps, "batch": args.batch, "n": args.n},
        **{"fid": fid["value"], "fid_se": fid["stderr"], "ratio": fid["value"] / floor["fid_lite0"]["mean"]},
        **{"floor": floor["fid_lite0"]["mean"], "floor_sd": floor["fid_lite0"]["std"]},
        **{"kid": 1e3 * kid["value"], "kid_se": 1e3 * kid["stderr"], "kid_floor": 1e3 * floor["kid_lite0"]["mean"]},
        vae_fid=fid_of(made[chosen]),
    )
    (ASSETS / "model" / "README.md").write_text(card)
    print(card)
    samples = Path("cache/samples") / record["run_id"]
    sample_grid([("", decode(samples))], Path("experiments/emoji_dit/samples.png"), columns=16)


def fid_of(images: torch.Tensor) -> float:
    """fid_lite0 of uint8 images against the shipped reference."""
    from qdit.eval.distribution import FID
    from qdit.eval.extractor import make_extractor
    from qdit.eval.reference import find

    extractor = make_extractor("lite0")
    extractor.load("cpu")
    features = [extractor(chunk) for chunk in images.split(64)]
    stacked = {k: torch.cat([f[k] for f in features]) for k in features[0]}
    jackknife = FID(extractor="lite0").jackknife(stacked, find("emoji", "lite0", Path("cache")))
    return jackknife.full


def decode(folder: Path) -> torch.Tensor:
    """The first 64 stored samples as images."""
    from qdit.model.dit import DiT

    model = DiT(name="emoji_dit").load("cpu", torch.float32)
    stored = SampleSet(folder, 64, 64, lambda i: torch.empty(0), model.decode, lambda name: lambda images: {})
    return next(stored.images())


if __name__ == "__main__":
    main()
