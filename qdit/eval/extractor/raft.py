"""Optical flow by RAFT (Teed & Deng, arXiv 2003.12039) through torchvision, with the published `raft-things.pth`.

The map of names loads strictly. With the same random weights torchvision's forward was once compared with the
original's: the difference was 0. Frames are padded to multiples of 8 by their border, half on each side, and magnitudes
are taken with the padding, as VBench does. The network needs sides of 128 px; clips below are refused.
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from qdit import compat as compat  # before torchvision
from qdit.errors import UserError
from qdit.eval.extractor.user_files import UserFile, load_strictly, read_state

LEAST = 128
SEEN = 0.05
"""The share of a frame that must be seen in the next one for its motion to explain anything; qdit's own."""
_MAP = (  # pattern in the published names, what it is in torchvision's
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm([12])\.", r"\1.convnormrelu\2.1."),
    (r"(layer\d\.\d)\.norm3\.", r"\1.downsample.1."),
    (r"^update_block\.encoder\.conv([cf])([12])\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"motion_encoder\.convc([12])", r"motion_encoder.convcorr\1"),
    (r"motion_encoder\.convf([12])", r"motion_encoder.convflow\1"),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def torchvision_name(name: str) -> str:
    """A parameter's name in torchvision, of that in the published file.

    >>> torchvision_name("fnet.layer2.0.norm3.weight"), torchvision_name("update_block.gru.convz1.bias")
    ('feature_encoder.layer2.0.downsample.1.weight', 'update_block.recurrent_block.convgru1.convz.bias')
    """
    for pattern, replacement in _MAP:
        name = re.sub(pattern, replacement, name)
    return name


def padded(frames: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
    """Repeat the border until both sides are multiples of 8, half on each side."""
    height, width = (-side % 8 for side in frames.shape[-2:])
    return F.pad(frames, (width // 2, width - width // 2, height // 2, height - height // 2), mode="replicate")


def largest(magnitude: Float[Tensor, "b h w"], share: float) -> Float[Tensor, " b"]:
    """The mean of the largest magnitudes, `int(share h w)` of them."""
    return magnitude.flatten(1).topk(int(share * magnitude[0].numel()))[0].mean(1)


class Flow(nn.Module):
    """Flow between successive frames of a clip, as scores of each step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def flow(self, first: Tensor, second: Tensor) -> Float[Tensor, "b 2 h w"]:
        """Pixels that each point moves by, from uint8 frames [b, 3, H, W]; with the padding."""
        pair = (padded(2 * (frames.float() / 255) - 1) for frames in (first, second))
        return self.network(*pair, num_flow_updates=20)[-1]

    def forward(self, clips: UInt8[Tensor, "b k 3 H W"]) -> dict[str, Float[Tensor, "b k-1"]]:
        """Of each step: magnitude in pixels, its mean and that of the largest 5 % and 2 %; a frame's shorter side."""
        first, second = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
        magnitude = self.flow(first, second).square().sum(1).sqrt()
        scores = {"mean": magnitude.mean((1, 2)), "top5": largest(magnitude, 0.05), "top2": largest(magnitude, 0.02)}
        scores["side"] = torch.full_like(scores["mean"], min(clips.shape[-2:]))
        return {name: values.view(len(clips), -1) for name, values in scores.items()}


class Ends(Flow):
    """Flow of whole clips: between successive frames, and between the first and the last in both directions."""

    def forward(self, clips: UInt8[Tensor, "b T 3 H W"]) -> dict[str, Tensor]:
        """Means of the largest 2 % of each step [b, T-1] and of both directions between the ends [b, 2]; the side."""
        steps = [super(Ends, self).forward(clips[:, at : at + 9])["top2"] for at in range(0, clips.shape[1] - 1, 8)]
        first, last = clips[:, 0], clips[:, -1]
        pairs = ((first, last), (last, first))
        ends = [largest(self.flow(one, other).square().sum(1).sqrt(), 0.02) for one, other in pairs]
        side = torch.full((len(clips), 1), float(min(clips.shape[-2:])))
        return {"top2": torch.cat(steps, 1), "ends": torch.stack(ends, 1), "side": side}


class RAFT(UserFile):
    """Scores of the flow of each step."""

    name = "raft"
    sizes = {"mean": 1, "top5": 1, "top2": 1, "side": 1}  # noqa: RUF012
    window = 2
    kind: type[Flow] = Flow

    def build(self) -> nn.Module:
        """The network with its weights.

        Raises:
            UserError: the file is missing, or of another network.
        """
        from torchvision.models.optical_flow import raft_large

        path = self.path()
        state = {torchvision_name(name): value for name, value in read_state(path).items()}
        return self.kind(load_strictly(raft_large(weights=None), state, path))

    def check(self, images: Tensor) -> None:
        """Refuse frames that are too small.

        Raises:
            UserError: a side is below 128 px.
        """
        if min(images.shape[-2:]) < LEAST:
            raise UserError(too_small(min(images.shape[-2:])))


class RAFTStatic(RAFT):
    """Scores of the flow of each step, and between the ends of a clip."""

    name = "raft_static"
    sizes = {"top2": 1, "ends": 1, "side": 1}  # noqa: RUF012
    window = None
    kind = Ends

    def check(self, images: Tensor) -> None:
        """Refuse frames that are too small, and stills.

        Raises:
            UserError: a side is below 128 px, or there is one frame.
        """
        super().check(images)
        if images.shape[1] < 2:
            raise UserError("the static filter needs clips of two frames or more, these have one")


def too_small(side: int) -> str:
    """The sentence about small frames."""
    return f"optical flow by RAFT needs frames of {LEAST} px or more a side, these have {side}; leave such metrics out"


def warped(images: Float[Tensor, "b 3 h w"], flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Fetch from `images` what each point has become, where the flow says it has gone; bilinear, borders repeated."""
    height, width = flow.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height).to(flow), torch.arange(width).to(flow), indexing="ij")
    x, y = (columns + flow[:, 0]) * 2 / (width - 1) - 1, (rows + flow[:, 1]) * 2 / (height - 1) - 1
    return F.grid_sample(images, torch.stack([x, y], 3), padding_mode="border", align_corners=True)


def visible(there: Float[Tensor, "b 2 h w"], back: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 1 h w"]:
    """1 where a point is seen in both frames: the flow back undoes the flow there (Ruder et al., arXiv 1604.08610)."""
    returned = warped(back, there)
    gone = (there + returned).square().sum(1) > 0.01 * (there.square() + returned.square()).sum(1) + 0.5
    return (~gone)[:, None].to(there)


class Warp(Flow):
    """How well each frame is explained by the next one, moved back by the flow."""

    def forward(self, clips: UInt8[Tensor, "b k 3 H W"]) -> dict[str, Float[Tensor, "b k-1"]]:
        """Mean squared difference of each step over the points that both frames show, of pixels in [0, 1].

        Where that is less than `SEEN` of a frame, nothing is explained by its motion, and all points count.
        """
        first, second = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
        there, back = self.flow(first, second), self.flow(second, first)
        one, other = (padded(frames.float() / 255) for frames in (first, second))
        seen = visible(there, back)
        seen = torch.where(seen.mean((1, 2, 3), keepdim=True) < SEEN, 1.0, seen)
        error = (one - warped(other, there)).square().mean(1, keepdim=True) * seen
        return {"error": (error.sum((1, 2, 3)) / seen.sum((1, 2, 3))).view(len(clips), -1)}


class RAFTWarp(RAFT):
    """Errors of frames that are moved by the flow of each step."""

    name = "raft_warp"
    sizes = {"error": 1}  # noqa: RUF012
    kind = Warp
