"""What the text encoder learns before the transformer sees it: which picture, and which motion, a caption means.

A text encoder that begins with random weights gets its gradient through a cross-attention that begins as nothing, and
the transformer ignores states that say nothing: after 1,500 steps samples showed nothing of their prompts. So the mean
of a caption's states is first fitted to the latent of its picture, by a linear map that is thrown away. Two minutes of
two cores explain nine tenths of the latents' variance.
"""

from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import T5EncoderModel

from experiments.emoji_pixart.fitting import fast_bfloat16, rate_at

BATCH, RATE = 256, 3e-3


def teach(
    text: T5EncoderModel,
    ids: Int[Tensor, "N 12"],
    wanted: Float[Tensor, "N D"],
    shares: Float[Tensor, " N"],
    steps: int,
    kept: Int[Tensor, "K 12"] | None = None,
) -> float:
    """Fit the encoder to say what its captions mean. Returns the share of that variance that it explains in the end.

    Args:
        text: the encoder, which is changed.
        ids: tokens of captions.
        wanted: what each means.
        shares: how often each is drawn.
        steps: of `BATCH` captions.
        kept: tokens of captions whose states a transformer knows already, and which are to stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    before = deepcopy(text)
    wanted = wanted - shares @ wanted
    total = float(shares @ wanted.square().mean(1))
    head = nn.Linear(text.config.d_model, wanted.shape[1])
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW([*text.parameters(), *head.parameters()], RATE, betas=(0.9, 0.99), weight_decay=0.0)
    left = []
    for step in range(steps):
        index = torch.multinomial(shares, BATCH, replacement=True, generator=generator)
        loss = (head(_states(text, ids[index]).mean(1)) - wanted[index]).square().mean()
        left = [*left[-24:], loss.item()]
        if kept is not None:
            some = kept[torch.randint(len(kept), (BATCH,), generator=generator)]
            with torch.no_grad():
                known = _states(before, some)
            loss = loss / total + (_states(text, some) - known).square().mean()
        optimizer.param_groups[0]["lr"] = RATE * rate_at(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 1 - sum(left) / len(left) / total


def _states(text: T5EncoderModel, ids: Int[Tensor, "B 12"]) -> Float[Tensor, "B 12 C"]:
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu")):
        return text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
