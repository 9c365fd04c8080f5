"""Train the embedded text-to-image model, warm-started from the embedded DiT, and export it as a stock pipeline folder.

    python -m experiments.emoji_pixart.train train --work WORK --minutes 60    # continues where it was stopped
    python -m experiments.emoji_pixart.train measure --work WORK               # emoji_match and a sheet to look at
    python -m experiments.emoji_pixart.train export --work WORK --to FOLDER    # fp16, loads in PixArtAlphaPipeline

Images have the DiT's own autoencoder, so that its training need not wait for that of clips (`autoencoder.py`).
"""

import argparse
import json
from pathlib import Path

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import torch
from diffusers import DiTTransformer2DModel, PixArtAlphaPipeline
from torch import Tensor
from transformers import T5EncoderModel

from experiments.emoji_dit.train import ASSETS, encode, scheduler
from experiments.emoji_pixart.autoencoder import pretrained
from experiments.emoji_pixart.fitting import arguments, fit, load_ema
from experiments.emoji_pixart.looking import emoji_ranks, save_sheet
from experiments.emoji_pixart.networks import (
    TextModel,
    loud_captions,
    make_pixart,
    noise_loss,
    sample,
    tokens,
    warm_pixart,
)
from experiments.emoji_pixart.reading import teach
from experiments.emoji_pixart.words import make_tokenizer
from qdit.dataset.captions import base_emoji, base_shares

SUBJECTS = [
    *("rocket", "grinning face", "red apple", "automobile", "dog face", "sunflower", "slice of pizza", "soccer ball"),
    *("banana", "alarm clock", "fire", "heavy black heart", "guitar", "penguin", "umbrella", "airplane"),
    *("cactus", "octopus", "crown", "mushroom", "camera", "key", "bicycle", "hamburger"),
]
"""Of the contact sheet; each is the name of one emoji."""


def load_exported(model: TextModel, folder: Path) -> TextModel:
    """The weights of a folder of `export`, or of the model that is shipped."""
    kept = {"torch_dtype": torch.float32}
    transformer = type(model.transformer).from_pretrained(folder / "transformer", **kept)
    model.transformer.load_state_dict(transformer.state_dict())
    model.text.load_state_dict(T5EncoderModel.from_pretrained(folder / "text_encoder", **kept).state_dict())
    return model


def fresh(model: TextModel, latents: Tensor, earlier: Path | None, steps: int) -> TextModel:
    """The model before its first step: the DiT without classes, or what an earlier training exported.

    `latents` are those of `base_emoji`, `steps` those of the text encoder on its own.
    """
    if earlier is not None:
        return load_exported(model, earlier)
    dit = DiTTransformer2DModel.from_pretrained(ASSETS / "model" / "transformer", torch_dtype=torch.float32)
    explained = warm_pixart(model.transformer, dit)  # type: ignore[arg-type]
    ids = tokens(make_tokenizer(), base_emoji()[1])
    read = teach(model.text, ids, latents.flatten(1), base_shares(), steps)
    size = loud_captions(model, ids[::8])
    print(f"shares of variance: modulation {explained:.3f}, pictures {read:.3f}; captions were {size:.2f}", flush=True)
    return model


def train(args: argparse.Namespace) -> None:
    """Steps on the latents of full-size emoji, which are computed once."""
    tokenizer = make_tokenizer()
    images, names = base_emoji()
    vae = pretrained().eval()
    latents = encode(vae, 2 * images - 1)
    model = TextModel(make_pixart(), len(tokenizer))
    if not (args.work / "pixart.pt").exists():
        fresh(model, latents, args.earlier, args.teach)
    latents, shares = latents.to(args.device), base_shares().to(args.device)

    def loss_of(model, generator: torch.Generator) -> Tensor:
        index = torch.multinomial(shares, args.batch, replacement=True, generator=generator)
        return noise_loss(model, latents[index], [names[i] for i in index.tolist()], tokenizer, generator)

    fit(model, loss_of, args, "pixart")


def trained(args: argparse.Namespace) -> tuple[TextModel, int]:
    """The EMA model of the last checkpoint, and its step."""
    model, step = load_ema(TextModel(make_pixart(), len(make_tokenizer())), args.work / "pixart.pt")
    return model, step  # type: ignore[return-value]


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    """Write a contact sheet of `SUBJECTS`, and print how often the nearest emoji is the one asked for."""
    model, step = trained(args)
    vae = pretrained().eval()
    names = base_emoji()[1]
    spread = torch.linspace(0, len(names) - 1, args.probes).long().tolist()
    wanted = [*[names.index(s) for s in SUBJECTS], *spread]
    texts = [names[i] for i in wanted]
    made = []
    for chunk in range(0, len(texts), 64):
        latents = sample(model, make_tokenizer(), texts[chunk : chunk + 64], None, guidance=args.guidance)
        made.append((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    images = torch.cat(made)
    save_sheet(images[: len(SUBJECTS)], args.work / f"pixart-{step}.png", columns=8)
    ranks = emoji_ranks(images[len(SUBJECTS) :], torch.tensor(spread))
    tops = {f"top-{k}": round((ranks < k).float().mean().item(), 3) for k in (1, 5)}
    print(f"step {step}, {args.probes} prompts, guidance {args.guidance}: emoji_match_lite0 {tops}", flush=True)


def export(args: argparse.Namespace) -> None:
    """The pipeline folder, in half precision."""
    model, step = trained(args)
    vae = pretrained()
    parts = {"vae": vae, "transformer": model.transformer, "text_encoder": model.text}
    pipeline = PixArtAlphaPipeline(tokenizer=make_tokenizer(), scheduler=scheduler(), **parts)  # type: ignore[arg-type]
    save(pipeline, args.to)
    print(f"step {step} is in {args.to}")


def save(pipeline, folder: Path) -> None:
    """Write a pipeline in half precision, without the paths of the machine."""
    pipeline.to(torch.float16).save_pretrained(folder)
    for config in folder.glob("*/config.json"):
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Parse the stage and its options."""
    parser = arguments(__doc__ or "", ("train", "measure", "export"))
    parser.add_argument("--probes", type=int, default=128, help="prompts of emoji_match, evenly from all names")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--earlier", type=Path, help="a folder of `export` to begin with; a checkpoint in WORK wins")
    parser.add_argument("--to", type=Path, default=ASSETS / "pixart")
    parser.add_argument("--teach", type=int, default=2000, help="steps of the text encoder alone, before all others")
    args = parser.parse_args()
    args.steps, args.batch, args.lr = args.steps or 6000, args.batch or 64, args.lr or 1e-3
    {"train": train, "measure": measure, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
