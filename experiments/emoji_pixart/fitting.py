"""Training in slices: every call continues from the last checkpoint, with the random numbers of the next step."""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from experiments.emoji_pixart.muon import Muon

Loss = Callable[[nn.Module, torch.Generator], Tensor]


def arguments(description: str, stages: Iterable[str]) -> argparse.ArgumentParser:
    """Options that the stages share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(stages))
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and trained parts, outside git")
    parser.add_argument("--steps", type=int, help="after which training is complete; may be changed on the way")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which this slice stops")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=2e-3, help="of the matrices of transformer blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=25)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--save-minutes", type=float, default=3.0, help="a checkpoint at least so often")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="transformer blocks, in two minutes; a fifth faster")
    return parser


def fit(model: nn.Module, loss_of: Loss, args: argparse.Namespace, name: str) -> nn.Module:
    """Take steps until `args.steps` or `args.minutes`; write `NAME.pt` on the way; return the model of EMA weights."""
    model.to(args.device).train()
    ema = AveragedModel(model, multi_avg_fn=_average)
    used = _optimizers(model, args)
    peaks = [optimizer.defaults["lr"] for optimizer in used]
    kind = args.device.split(":")[0]
    halved = fast_bfloat16(kind)
    path = args.work / f"{name}.pt"
    step, spent = _resume(path, model, ema, used)
    torch._dynamo.config.automatic_dynamic_shapes = False  # a block meets two shapes, of clips and of single frames
    for block in model.modules():
        if args.compile and isinstance(block, BasicTransformerBlock):
            block.compile()
    started = saved = time.monotonic()
    losses: list[float] = []
    while step < args.steps and time.monotonic() - started < 60 * args.minutes:
        rate = rate_at(step, args.steps)
        with torch.autocast(kind, torch.bfloat16, enabled=halved):
            loss = loss_of(model, torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + step))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(used, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = rate * peak
            optimizer.step()
        ema.update_parameters(model)
        step += 1
        losses = [*losses[1 - args.log_every :], loss.item()]
        now = time.monotonic()
        if step % args.log_every == 0:
            mean, hours = sum(losses) / len(losses), (spent + now - started) / 3600
            print(f"{name} {step}/{args.steps} loss {mean:.4f} {hours:.3f} h", flush=True)
        if step % args.save_every == 0 or now - saved > 60 * args.save_minutes:
            _save(path, step, spent + now - started, model, ema, used)
            saved = time.monotonic()
    _save(path, step, spent + time.monotonic() - started, model, ema, used)
    return ema.module.eval()


def rate_at(step: int, steps: int) -> float:
    """The share of the peak rate: full after a warm-up, then falling linearly over the last quarter of all steps."""
    return min((step + 1) / 50, 1.0, 4 * (steps - step) / steps)


def fast_bfloat16(kind: str) -> bool:
    """Whether products are faster in bfloat16 here; a CPU without instructions for it takes tens of times as long."""
    return kind != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def load_ema(model: nn.Module, path: Path) -> tuple[nn.Module, int]:
    """The model with the EMA weights of a checkpoint of `fit`, and the steps taken."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    prefix = "module."
    model.load_state_dict({k[len(prefix) :]: v for k, v in state["ema"].items() if k.startswith(prefix)})
    return model.eval(), state["step"]


def _average(averages: list[Tensor], current: list[Tensor], taken: Tensor | int) -> None:
    """EMA of decay 0.999, less in the first steps, so that a short training is not an average with its beginning."""
    decay = min(0.999, (1 + int(taken)) / (10 + int(taken)))
    torch._foreach_lerp_(averages, current, 1 - decay)


def _optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of transformer blocks where there are any."""
    inside = [p for n, p in model.named_parameters() if "transformer_blocks" in n and "table" not in n and p.ndim == 2]
    chosen = {id(p) for p in inside}
    others = [p for p in model.parameters() if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, args.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ]
    if inside:  # its updates are scaled to the size of AdamW's
        halved = fast_bfloat16(args.device.split(":")[0])
        made.append(Muon(inside, args.muon_lr, dtype=torch.bfloat16 if halved else torch.float32))
    return made


def _resume(path: Path, model: nn.Module, ema: nn.Module, used: list) -> tuple[int, float]:
    """Steps taken and seconds spent."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    for optimizer, kept in zip(used, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return state["step"], state["seconds"]


def _save(path: Path, step: int, seconds: float, model: nn.Module, ema: nn.Module, used: list) -> None:
    """Replace the checkpoint as a whole."""
    partial = path.with_suffix(".tmp")
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "ema": ema.state_dict()}
    torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in used]}, partial)
    partial.replace(path)
