"""Train the embedded text-to-clip model from the text-to-image model, and export it as a stock pipeline folder.

    python -m experiments.emoji_latte.train train --work WORK --minutes 60     # continues where it was stopped
    python -m experiments.emoji_latte.train measure --work WORK                # motion_match, emoji_match, a film sheet
    python -m experiments.emoji_latte.train export --work WORK --to FOLDER     # fp16, loads in LattePipeline

It reads `WORK/vae` and, for its first step, the image model that is shipped. Clips are rendered and encoded on the fly.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import torch
from diffusers import AutoencoderKL, LattePipeline, LatteTransformer3DModel
from torch import Tensor
from torch.nn.functional import one_hot

from experiments.emoji_dit.train import ASSETS, encode, scheduler
from experiments.emoji_pixart.autoencoder import pretrained
from experiments.emoji_pixart.fitting import arguments, fit, load_ema
from experiments.emoji_pixart.looking import emoji_ranks, save_moving, save_sheet
from experiments.emoji_pixart.networks import TextModel, make_latte, make_pixart, noise_loss, sample, tokens, warm_latte
from experiments.emoji_pixart.reading import teach
from experiments.emoji_pixart.train import SUBJECTS, load_exported, save
from experiments.emoji_pixart.words import make_tokenizer
from qdit.assets import folder_of
from qdit.dataset.captions import base_emoji, base_shares, caption, held_out
from qdit.dataset.emoji_prompts import motion_pairs
from qdit.dataset.motion import FRAMES, PHRASES, POSES, read_motion, render, subject

IMAGES = "embedded:emoji_pixart"
LOUDNESS = 4.0
"""Of a motion's mark beside a picture's latent of 256 values, in what the text encoder learns first."""


def trained_pairs() -> Tensor:
    """Indices of emoji and phrase that are trained, [P, 2]."""
    names = base_emoji()[1]
    kept = [(i, m) for i, name in enumerate(names) for m, phrase in enumerate(PHRASES) if not held_out(name, phrase)]
    return torch.tensor(kept)


@torch.no_grad()
def fresh(model: TextModel, args: argparse.Namespace) -> None:
    """The model before its first step: what an earlier training exported, or the image model with phrases taught."""
    if args.earlier is not None:
        load_exported(model, args.earlier)
        return
    images, names = base_emoji()
    tokenizer = make_tokenizer()
    warm_latte(model, load_exported(TextModel(make_pixart(), len(tokenizer)), folder_of(IMAGES)))
    pairs = trained_pairs()
    which, motion = pairs.unbind(1)
    meanings = [encode(pretrained(), 2 * images - 1).flatten(1)[which], LOUDNESS * one_hot(motion, len(PHRASES))]
    shares = base_shares()[which]
    captions = tokens(tokenizer, [caption(names[i], PHRASES[m]) for i, m in pairs.tolist()])
    with torch.enable_grad():
        given = captions, torch.cat(meanings, 1), shares / shares.sum(), args.teach, tokens(tokenizer, names)
        read = teach(model.text, *given)
    print(f"pictures and motions are read to {read:.3f}", flush=True)


@contextmanager
def stills_at(transformer: LatteTransformer3DModel, places: Tensor) -> Iterator[None]:
    """Let clips of one frame [B, 4, 1, 8, 8] lie at places [B] in time.

    Of a clip of one frame diffusers adds no place; that of longer ones is added where the first temporal block begins.
    """

    def add(_, given: tuple) -> tuple:
        hidden, *others = given
        known = transformer.temp_pos_embed[0, places].to(hidden.dtype)
        return hidden + known.repeat_interleave(len(hidden) // len(places), 0)[:, None], *others

    handle = transformer.temporal_transformer_blocks[0].register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


class Drawn:
    """Clips of pairs that are not held out, rendered and encoded as they are drawn."""

    def __init__(self, args: argparse.Namespace) -> None:
        images, self.names = base_emoji()
        self.pairs, self.poses = trained_pairs(), POSES.to(args.device)
        self.emoji, self.shares = images.to(args.device), base_shares()[self.pairs[:, 0]].to(args.device)
        self.vae = AutoencoderKL.from_pretrained(args.work / "vae", torch_dtype=torch.float32).eval().to(args.device)

    @torch.no_grad()
    def clips(self, count: int, generator: torch.Generator, still: bool) -> tuple[Tensor, list[str], Tensor]:
        """Latents [count, 4, T, 8, 8] of whole clips or of one frame each, prompts, and the places of these frames."""
        device = generator.device
        chosen = torch.multinomial(self.shares, count, replacement=True, generator=generator).cpu()
        which, motion = self.pairs[chosen].unbind(1)
        places = torch.randint(0, FRAMES, (count,), generator=generator, device=device)
        poses = self.poses[motion]
        if still:
            poses = poses[torch.arange(count, device=device), places][:, None]
        frames = render(self.emoji[which], poses).flatten(0, 1)
        latents = self.vae.encode(2 * frames - 1).latent_dist.mode().float()
        texts = [caption(self.names[i], PHRASES[m]) for i, m in zip(which.tolist(), motion.tolist(), strict=True)]
        return latents.unflatten(0, (count, -1)).transpose(1, 2), texts, places


def train(args: argparse.Namespace) -> None:
    """Steps on clips and, as often as `args.stills` says, on as many single frames, each of another clip."""
    tokenizer, drawn = make_tokenizer(), Drawn(args)
    model = TextModel(make_latte(), len(tokenizer))
    if not (args.work / "latte.pt").exists():
        fresh(model, args)

    def loss_of(network, generator: torch.Generator) -> Tensor:
        still = bool(torch.rand((), generator=generator, device=generator.device) < args.stills)
        clean, texts, places = drawn.clips(args.batch * (FRAMES if still else 1), generator, still)
        with stills_at(network.transformer, places) if still else nullcontext():
            return noise_loss(network, clean, texts, tokenizer, generator)

    fit(model, loss_of, args, "latte")


def trained(args: argparse.Namespace) -> tuple[TextModel, int]:
    """The EMA model of the last checkpoint, and its step."""
    model, step = load_ema(TextModel(make_latte(), len(make_tokenizer())), args.work / "latte.pt")
    return model, step  # type: ignore[return-value]


@torch.no_grad()
def clips_of(model: TextModel, vae: AutoencoderKL, texts: list[str], args: argparse.Namespace) -> Tensor:
    """Clips [B, T, 3, 32, 32] in [0, 1]."""
    how = {"steps": args.sampling_steps, "guidance": args.guidance}
    made = []
    for chunk in range(0, len(texts), 24):
        latents = sample(model, make_tokenizer(), texts[chunk : chunk + 24], FRAMES, **how)
        frames = vae.decode(latents.transpose(1, 2).flatten(0, 1)).sample / 2 + 0.5
        made.append(frames.clamp(0, 1).unflatten(0, (-1, FRAMES)))
    return torch.cat(made)


def measure(args: argparse.Namespace) -> None:
    """Write a film sheet with one row a phrase, the same moving, and print two scores on trained and held-out pairs."""
    model, step = trained(args)
    vae = AutoencoderKL.from_pretrained(args.work / "vae").eval()
    names = base_emoji()[1]
    texts = [caption(SUBJECTS[m], phrase) for m, phrase in enumerate(PHRASES)]
    shown = clips_of(model, vae, texts, args)
    save_sheet(shown.flatten(0, 1), args.work / f"latte-{step}.png", FRAMES)
    save_moving(shown, args.work / f"latte-{step}-moving.png", columns=6)
    for held in (False, True):
        pairs = [*islice(motion_pairs(held), args.probes if not held else args.probes // 2)]
        clips = clips_of(model, vae, [caption(names[i], PHRASES[m]) for i, m in pairs], args)
        emoji, motion = torch.tensor(pairs).unbind(1)
        right = read_motion(clips) == motion
        shown = torch.cat([subject(c[None], m) for c, m in zip(clips, motion.tolist(), strict=True)])
        ranks = emoji_ranks(shown, emoji)
        by_phrase = {p: round(right[motion == m].float().mean().item(), 2) for m, p in enumerate(PHRASES)}
        tops = {f"top-{k}": round((ranks < k).float().mean().item(), 3) for k in (1, 5)}
        kind = "held-out" if held else "trained"
        print(f"step {step}, {len(pairs)} {kind} pairs: motion_match {right.float().mean():.3f}, emoji {tops}")
        print(by_phrase, flush=True)


def export(args: argparse.Namespace) -> None:
    """The pipeline folder, in half precision."""
    model, step = trained(args)
    parts = {"vae": AutoencoderKL.from_pretrained(args.work / "vae"), "text_encoder": model.text}
    pipeline = LattePipeline(
        tokenizer=make_tokenizer(),
        scheduler=scheduler(),
        transformer=model.transformer,  # type: ignore[arg-type]
        **parts,
    )
    save(pipeline, args.to)
    print(f"step {step} is in {args.to}")


def main() -> None:
    """Parse the stage and its options."""
    parser = arguments(__doc__ or "", ("train", "measure", "export"))
    parser.add_argument("--probes", type=int, default=240, help="clips of the scores; half as many of held-out pairs")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument(
        "--stills", type=float, default=0.75, help="share of steps on single frames, of other emoji each"
    )
    parser.add_argument("--earlier", type=Path, help="a folder of `export` to begin with; a checkpoint in WORK wins")
    parser.add_argument("--to", type=Path, default=ASSETS / "latte")
    parser.add_argument("--teach", type=int, default=1500, help="steps of the text encoder alone, before all others")
    args = parser.parse_args()
    args.steps, args.batch, args.lr = args.steps or 4000, args.batch or 12, args.lr or 5e-4
    {"train": train, "measure": measure, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
