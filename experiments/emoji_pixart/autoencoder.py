"""The embedded autoencoder, fine-tuned on emoji of every size, place, angle and opacity, for clips.

The DiT's own stays as it is. With the encoder held, 300 steps took clips from 27.4 to 29.3 dB and full-size images from
34.9 to 32.8: the decoder alone is not enough, so the latents change, and the clip model learns on new ones.

python -m experiments.emoji_pixart.autoencoder train --work WORK       # continues where it was stopped
python -m experiments.emoji_pixart.autoencoder measure --work WORK     # PSNR of images and of clips
"""

import argparse

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from experiments.emoji_dit.train import ASSETS, autoencoder_loss, encode, whiten
from experiments.emoji_pixart.fitting import arguments, fit, load_ema
from qdit.dataset.captions import base_emoji
from qdit.dataset.motion import POSES, SIDE, SIZE, read_motion, render


def random_poses(count: int, generator: torch.Generator) -> Float[Tensor, "N 1 5"]:
    """Poses between and a little beyond those of the phrases; the first half shows the emoji at its full size."""
    draw = torch.rand(count, 5, generator=generator, device=generator.device)
    moved = torch.rand(count, 3, generator=generator, device=generator.device) < 0.5
    place = torch.where(moved[:, :1], 12 * draw[:, :2] - 6, 0.0)
    scale = torch.where(moved[:, 1], 0.55 + 0.9 * draw[:, 2], 1.0)
    angle = torch.where(moved[:, 2], 180 * draw[:, 3] - 90, 0.0)
    opacity = torch.where(draw[:, 4] < 0.3, 0.15 + 0.85 * draw[:, 4] / 0.3, 1.0)
    poses = torch.cat([place, torch.stack([scale, angle, opacity], 1)], 1)
    poses[: count // 2] = torch.tensor([0.0, 0.0, SIDE / SIZE, 0.0, 1.0], device=poses.device)
    return poses[:, None]


def pretrained() -> AutoencoderKL:
    """The DiT's autoencoder in float32."""
    return AutoencoderKL.from_pretrained(ASSETS / "model" / "vae", torch_dtype=torch.float32)


def psnr(output: Float[Tensor, "B *rest"], wanted: Float[Tensor, "B *rest"]) -> Float[Tensor, " B"]:
    """Decibels, of images in [0, 1]."""
    return -10 * (output.clamp(0, 1) - wanted).square().flatten(1).mean(1).log10()


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "B 3 32 32"]:
    """Images in [0, 1] through the autoencoder."""
    return torch.cat([model.decode(z).sample / 2 + 0.5 for z in encode(model, 2 * images - 1).split(256)]).clamp(0, 1)


def measure(model: AutoencoderKL, every: int = 16) -> dict[str, float]:
    """PSNR of images and of whole clips, and how many clips' motion is read right after reconstruction."""
    emoji = base_emoji()[0][::every]
    found = {"images_db": psnr(reconstruct(model, emoji), emoji).mean().item()}
    decibels, right = [], []
    for index, poses in enumerate(POSES):
        clips = render(emoji[::4], poses.expand(len(emoji[::4]), -1, -1))
        output = reconstruct(model, clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        decibels.append(psnr(output, clips))
        right.append(read_motion(output) == index)
    found["clips_db"] = torch.cat(decibels).mean().item()
    found["clips_db_worst_motion"] = min(d.mean().item() for d in decibels)
    found["motion_match"] = torch.cat(right).float().mean().item()
    return found


def train(args: argparse.Namespace) -> None:
    """Fit to `args.steps`, then whiten the latents of full-size emoji and write the folder `vae`."""
    emoji = base_emoji()[0].to(args.device)

    def loss_of(model, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(emoji), (args.batch,), generator=generator, device=generator.device)
        poses = random_poses(args.batch, generator)
        images = render(emoji[index], poses).squeeze(1)
        half = args.batch // 2
        images = torch.cat([emoji[index[:half]], images[half:]])  # as they are, not as they are sampled again
        return autoencoder_loss(model, 2 * images - 1)[0]

    export(fit(pretrained(), loss_of, args, "autoencoder").cpu(), args)


def export(model: AutoencoderKL, args: argparse.Namespace) -> None:
    """Write `vae` with latents of mean 0 and deviation 1 on full-size emoji."""
    whiten(model, encode(model, 2 * base_emoji()[0] - 1))
    model.save_pretrained(args.work / "vae")
    print({k: round(v, 3) for k, v in measure(model).items()})


def main() -> None:
    """Parse the stage and its options."""
    args = arguments(__doc__ or "", ("train", "measure", "export")).parse_args()
    args.steps, args.batch, args.lr = args.steps or 6000, args.batch or 48, args.lr or 8e-4
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "train":
        train(args)
    elif args.stage == "export":
        export(load_ema(pretrained(), args.work / "autoencoder.pt")[0], args)  # type: ignore[arg-type]
    else:
        trained = args.work / "autoencoder.pt"
        model, step = load_ema(pretrained(), trained) if trained.exists() else (pretrained().eval(), 0)
        print(step, {k: round(v, 3) for k, v in measure(model).items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
