"""The two transformers, what they start from, and the forward pass that the pipelines make, too."""

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
import torch
from diffusers import DiTTransformer2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from experiments.emoji_dit.train import scheduler
from experiments.emoji_pixart.fitting import fast_bfloat16
from experiments.emoji_pixart.words import PAD_ID, make_text_encoder
from qdit.dataset.captions import WORDS
from qdit.dataset.motion import FRAMES

HEADS, LAYERS, TEXT = 4, 8, 128
KEPT = (0, 1, 3, 4, 6, 7)
"""Blocks of the image model from which those of the clip model start; all eight would make a slow and large one."""
SHARED = dict(
    num_attention_heads=HEADS,
    attention_head_dim=64,
    in_channels=4,
    out_channels=8,  # LattePipeline drops the second half, as a learned variance; it is not trained
    num_layers=LAYERS,
    sample_size=8,
    cross_attention_dim=64 * HEADS,
    patch_size=1,
    caption_channels=TEXT,
)


def make_pixart() -> PixArtTransformer2DModel:
    """PixArt: 8 blocks of width 256 on 64 tokens, 9.1 M parameters."""
    return PixArtTransformer2DModel(**SHARED, use_additional_conditions=False)


def make_latte() -> LatteTransformer3DModel:
    """Latte: six blocks of PixArt, each followed by a temporal one of 8 tokens, 11.7 M parameters."""
    return LatteTransformer3DModel(
        **SHARED | {"num_layers": len(KEPT)},
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=FRAMES,
        num_embeds_ada_norm=1000,
    )


class PlainAttention:
    """Attention as products: for few tokens on a CPU, training is faster than by the fused kernel."""

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **_) -> Tensor:
        """[B, T, C] -> [B, T, C]; `attention_mask` [B, 1, K] is added to the scores."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        pairs = ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        query, key, value = (p(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for p, x in pairs)
        scores = (query * attn.scale) @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        return attn.to_out[0]((scores.softmax(3) @ value).transpose(1, 2).flatten(2))


class TextModel(nn.Module):
    """Text encoder and transformer, trained as one; the forward pass is that of the stock pipelines."""

    def __init__(self, transformer: PixArtTransformer2DModel | LatteTransformer3DModel, vocabulary: int) -> None:
        super().__init__()
        self.text: T5EncoderModel = make_text_encoder(vocabulary)
        self.transformer = transformer
        for module in transformer.modules():
            if isinstance(module, Attention):
                module.set_processor(PlainAttention())  # type: ignore[arg-type]

    def forward(
        self, noisy: Float[Tensor, "B 4 *TS S"], times: Int[Tensor, " B"], ids: Int[Tensor, "B 12"]
    ) -> Float[Tensor, "B 4 *TS S"]:
        """Predicted noise of latents, [B, 4, 8, 8] of images or [B, 4, T, 8, 8] of clips."""
        mask = (ids != PAD_ID).to(torch.int64)
        states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        given = {"encoder_hidden_states": states, "timestep": times}
        if noisy.ndim == 4:
            given["encoder_attention_mask"] = mask.to(states.dtype)
            given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        elif self.training:  # the empty prompt in both forms in which Latte is given it, see README.md
            masked = torch.arange(len(ids), device=ids.device)[:, None] % 2 * (1 - mask)
            given["encoder_hidden_states"] = states * (1 - masked)[:, :, None].to(states.dtype)
        return self.transformer(noisy, **given).sample[:, :4]


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Int[Tensor, "B 12"]:
    """Token ids of prompts, as the pipelines ask for them."""
    given = {"padding": "max_length", "max_length": WORDS + 1, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **given).input_ids


def noise_loss(
    model: TextModel, clean: Tensor, texts: list[str], tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> Tensor:
    """Epsilon loss weighted by min(SNR, 5) / SNR (Hang et al. 2023); a tenth of the prompts is empty."""
    count, device = len(clean), generator.device
    drop = torch.rand(count, generator=generator, device=device) < 0.1
    ids = tokens(tokenizer, ["" if d else t for t, d in zip(texts, drop.tolist(), strict=True)]).to(device)
    times = torch.randint(0, 1000, (count,), generator=generator, device=device)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    alpha = scheduler().alphas_cumprod.to(device)[times]
    wide = alpha.view(-1, *[1] * (clean.ndim - 1))
    predicted = model(wide.sqrt() * clean + (1 - wide).sqrt() * noise, times, ids).float()
    snr = alpha / (1 - alpha)
    return ((predicted - noise).square().flatten(1).mean(1) * (snr.clamp(max=5) / snr)).mean()


@torch.no_grad()
def sample(
    model: TextModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    frames: int | None,
    steps: int = 20,
    guidance: float = 3.0,
    precision: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Latents of prompts by DDIM, [B, 4, 8, 8] or, with `frames`, [B, 4, T, 8, 8]; noise of seed 0."""
    shape = (len(texts), 4, 8, 8) if frames is None else (len(texts), 4, frames, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ids = tokens(tokenizer, [*texts, *[""] * len(texts)])
    ddim = scheduler()
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16 and fast_bfloat16("cpu")):
            both = model(torch.cat([x, x]), t.expand(2 * len(x)), ids).float()
        text, null = both.chunk(2)
        x = ddim.step(null + guidance * (text - null), t, x).prev_sample  # type: ignore[union-attr]
    return x


@torch.no_grad()
def warm_pixart(model: PixArtTransformer2DModel, dit: DiTTransformer2DModel, small: float = 0.1) -> float:
    """Start PixArt as the DiT without a class. Returns the share of the modulation's variance that it takes over.

    Attention, feed-forward, patches and the last projection are copied. The DiT computes each block's modulation from
    time and class; PixArt has one for all blocks and a table for each: the first is fitted to the blocks' mean over the
    null class by least squares on features of time, the second is what remains. Cross-attention starts as nothing.
    """
    known = model.state_dict()
    model.load_state_dict({k: v for k, v in dit.state_dict().items() if k in known and "norm" not in k}, strict=False)
    times, null = torch.arange(0, 1000, 10), torch.full((100,), dit.config["num_embeds_ada_norm"])
    norms = [block.norm1 for block in dit.transformer_blocks]
    conditions = [norm.emb(times, null, hidden_dtype=torch.float32) for norm in norms]
    wanted = torch.stack([n.linear(silu(c)) for n, c in zip(norms, conditions, strict=True)], 1)
    shared = model.adaln_single
    embedder = shared.emb.timestep_embedder
    embedder.load_state_dict(norms[0].emb.timestep_embedder.state_dict())
    embedder.linear_2.weight.mul_(small)  # the last layer adds this embedding itself: it must be small
    embedder.linear_2.bias.mul_(small)
    embedded = embedder(shared.emb.time_proj(times))
    features = torch.cat([silu(embedded), torch.ones(100, 1)], 1).double()
    solution = torch.linalg.lstsq(features, wanted.mean(1).double(), driver="gelsd").solution.float()
    shared.linear.weight.copy_(solution[:-1].T)
    shared.linear.bias.copy_(solution[-1])
    rest = wanted - shared.linear(silu(embedded))[:, None]
    for block, table in zip(model.transformer_blocks, rest.mean(0), strict=True):
        block.scale_shift_table.copy_(table.view(6, -1))
        nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.zeros_(block.attn2.to_out[0].bias)
    last = dit.proj_out_1(silu(conditions[0])).mean(0).chunk(2)
    model.scale_shift_table.copy_(torch.stack(last) - embedded.mean(0))
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    model.proj_out.weight[:4], model.proj_out.bias[:4] = dit.proj_out_2.weight, dit.proj_out_2.bias
    return 1 - float((rest - rest.mean(0)).square().sum() / (wanted - wanted.mean((0, 1))).square().sum())


@torch.no_grad()
def loud_captions(model: TextModel, ids: Int[Tensor, "B 12"]) -> float:
    """Scale what the blocks read of prompts to a mean square of 1. Returns the root of the mean square before.

    As diffusers initialises it, the root was .2, and .11 after 1,300 steps of 32 images: the text's part of each update
    was as much smaller than the image's. A wrong prompt then cost 16 % of the loss at t = 500, and samples showed
    nothing of theirs.
    """
    states = model.text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    last = model.transformer.caption_projection.linear_2
    size = model.transformer.caption_projection(states).square().mean().sqrt()
    for part in (last.weight, last.bias):
        part.div_(size)
    return float(size)


def warm_latte(model: TextModel, pixart: TextModel) -> None:
    """Start from six blocks of the image model on every frame; temporal blocks add nothing at first."""
    known, blocks = pixart.state_dict(), "transformer.transformer_blocks."
    state = {k: v for k, v in known.items() if not k.startswith(blocks)}
    for to, block in enumerate(KEPT):
        start = f"{blocks}{block}."
        state |= {k.replace(start, f"{blocks}{to}.", 1): v for k, v in known.items() if k.startswith(start)}
    found = model.load_state_dict(state, strict=False)
    if found.unexpected_keys or not all("temporal" in k or "temp_pos" in k for k in found.missing_keys):
        raise AssertionError(f"not the same blocks: {found}")
    for block in model.transformer.temporal_transformer_blocks:  # type: ignore[union-attr]
        for linear in (block.attn1.to_out[0], block.ff.net[2]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
