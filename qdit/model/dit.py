"""DiT (Peebles & Xie 2023, arXiv 2212.09748) as diffusers ships it: class-conditional, latent, adaLN-Zero.

diffusers' `DiTTransformer2DModel` keeps a copy of the timestep and class embedder in each block (`norm1.emb`), where
the original has one for the network. The copies hold equal weights; they are separate sites here, because they are
separate modules, and a size or cost that counts sites counts them all. The final layer reads the copy of block 0.

Two details of diffusers differ from the original and are keys of this adapter, set from outside after loading:

- timestep frequencies: the original divides i by half, diffusers by half - 1 (`downscale_freq_shift=1`);
- LayerNorm's eps: 1e-6 in the original, 1e-5 in diffusers' converted configs (before the feed-forward).

With both set to the original's, the outputs are equal (a test compares them). DiT's sin-cos position table is computed
by diffusers, and is equal. Models that read prompts have adapters of their own (`qdit.model.text`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.model.base import Attention, Fold, Site, Source, readers_of_inputs
from qdit.model.checks import check_dit, check_schedule
from qdit.model.derive import structure
from qdit.model.files import check_class, check_vae, load_module, locate, read_config
from qdit.model.hub import at, named, short
from qdit.model.loaded import Loaded, value_folds
from qdit.model.outline import CONFIGS, has_weights, schedule_of, shell, shell_beside
from qdit.model.weights import shapes

_FREQUENCY_SHIFT = {"diffusers": 1.0, "dit": 0.0}


@dataclass(kw_only=True)
class DiT:
    """Which checkpoint, and how close to the original DiT it runs."""

    name: str
    path: str | None = None
    """None: the embedded emoji model; a folder in diffusers' format; or a hub id."""
    revision: str | None = None
    """Of a hub id."""
    vae_path: str | None = None
    """None: the pipeline's own autoencoder; else another folder or hub id."""
    vae_revision: str | None = None
    """Of `vae_path`, if it is a hub id."""
    timestep_frequencies: Literal["diffusers", "dit"] = "diffusers"
    layer_norm_eps: float | None = None
    """None: as the checkpoint's config says."""

    def protocol(self) -> str:
        """Name what changes the full-precision outputs, readably."""
        eps = "config" if self.layer_norm_eps is None else f"{self.layer_norm_eps:g}"
        vae = named(self.vae_path, short(self.vae_revision)) or "own"
        name = self.name + at(self.path, short(self.revision))
        return f"{name}|vae={vae}|frequencies={self.timestep_frequencies}|eps={eps}"

    def load(self, device: str | torch.device, dtype: torch.dtype) -> "LoadedDiT":
        """Read the checkpoint, check it, and move it to `device`; the denoiser in `dtype`, the autoencoder in float32.

        Raises:
            UserError: a file is missing, damaged, foreign, or pickled; a key of this option is wrong; or the
                autoencoder is not the transformer's.
        """
        # slow to import
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        if self.timestep_frequencies not in _FREQUENCY_SHIFT:
            raise UserError(
                f"model.timestep_frequencies={self.timestep_frequencies}; allowed: {', '.join(_FREQUENCY_SHIFT)}"
            )
        parts = ["transformer", "scheduler"] + ["vae"] * (self.vae_path is None)
        wanted = ["model_index.json"] + [f"{part}/*.{end}" for part in parts for end in ("json", "safetensors")]
        root = locate(self.path, self.revision, "model.path", wanted)
        check_transformer(root)
        vae = root / "vae" if self.vae_path is None else locate_vae(self.vae_path, self.vae_revision)
        check_vae(vae)
        schedule = read_config(root / "scheduler", "scheduler_config.json")
        check_schedule(root / "scheduler" / "scheduler_config.json", schedule)
        denoiser = load_module(DiTTransformer2DModel, root / "transformer", dtype)
        self.restore_original_details(denoiser)
        # The autoencoder is part of the measurement, and not quantized. Stable Diffusion's overflows in float16.
        autoencoder = load_module(AutoencoderKL, vae, torch.float32)
        return LoadedDiT(denoiser.to(device), autoencoder.to(device), schedule, torch.device(device), dtype)

    def outline(self, device: str | torch.device, dtype: torch.dtype) -> "LoadedDiT":
        """The pipeline by its configs alone, of which the transformer's must be there: to be looked at, not run.

        Raises:
            UserError: a config is missing or foreign, or weights are there and do not fit to it.
        """
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        root = locate(self.path, self.revision, "model.path", CONFIGS)
        check_transformer(root)
        denoiser = shell(DiTTransformer2DModel, root / "transformer", dtype)
        made = LoadedDiT(denoiser, None, None, torch.device(device), dtype)
        vae = shell_beside(root, self.vae_path, "AutoencoderKL", check_vae)
        made.complete(vae, schedule_of(root / "scheduler", LoadedDiT.schedulers))
        return made

    def restore_original_details(self, denoiser: nn.Module) -> None:
        """Apply `timestep_frequencies` and `layer_norm_eps` in place."""
        for path, module in denoiser.named_modules():
            if path.endswith("time_proj"):
                module.downscale_freq_shift = _FREQUENCY_SHIFT[self.timestep_frequencies]  # pyright: ignore[reportArgumentType]
            if isinstance(module, nn.LayerNorm) and self.layer_norm_eps is not None:
                module.eps = self.layer_norm_eps


def check_transformer(root: Path) -> None:
    """Refuse a folder whose transformer is not a DiT, or not one that can be.

    Raises:
        UserError: naming the class found, or the values.
    """
    folder = root / "transformer"
    config = read_config(folder)
    # The published DiT checkpoints predate the class's own name; diffusers tells them by the norm's type.
    legacy = config.get("_class_name") == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    if not legacy:
        check_class(folder, config, ("DiTTransformer2DModel",))
    check_dit(folder / "config.json", config)
    if has_weights(folder):
        check_size(folder, config)


def check_size(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a config that asks for more than the weights hold, before anything of its size is allocated.

    Raises:
        UserError: more blocks, or wider ones.
    """
    found = shapes(folder)
    numbers = {parts[1] for name in found if (parts := name.split(".", 2))[1:2] and parts[1].isdigit()}
    if config["num_layers"] > len(numbers):
        reason = f"num_layers is {config['num_layers']}, and the weights have {len(numbers)} blocks"
    elif (wanted := config["num_attention_heads"] * config["attention_head_dim"]) > (
        width := found.get("pos_embed.proj.weight", (wanted,))[0]
    ):
        reason = f"heads × head_dim are {wanted} wide, and the weights {width}"
    else:
        return
    raise UserError(f"{folder}: config.json and the weights do not fit together: {reason}")


def locate_vae(path: str, revision: str | None) -> Path:
    """Find an autoencoder's folder: `path` itself, or its `vae` part if it is a whole pipeline."""
    ends = ["config.json", "diffusion_pytorch_model.safetensors", "vae/*.json", "vae/*.safetensors"]
    root = locate(path, revision, "model.vae_path", ends)
    return root / "vae" if (root / "vae").is_dir() else root


class LoadedDiT(Loaded):
    """A DiT pipeline ready to run: see `qdit.model.base.DiffusionModel`."""

    def __init__(self, denoiser: nn.Module, *parts: Any) -> None:
        super().__init__(denoiser, *parts)
        config: Any = denoiser.config
        self.num_classes = self.null_class = config.num_embeds_ada_norm

    @classmethod
    def adapt(cls, transformer: Any, **_: Any) -> Self:
        """The adapter of a DiT that diffusers loaded; the network gets no gradients any more, and is not changed else.

        Raises:
            UserError: its config has values that cannot be.
        """
        config = {key: value for key, value in transformer.config.items() if value is not None}
        if not getattr(transformer, "is_quantized", False):  # by diffusers, while it reads a folder of qdit's
            check_dit(Path("transformer.config"), config)
        frozen = transformer.eval().requires_grad_(False)
        return cls(frozen, None, None, transformer.device, transformer.dtype)

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """Derive the sites and attentions."""
        return structure(denoiser, one_sample)

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """Find the layers that modulate the inputs of attention, feed-forward and final layer, and the values."""
        return list_folds(sites, self._attentions)

    def denoise(
        self, x: Float[Tensor, "B C h w"], t: Real[Tensor, " B"], y: Int[Tensor, " B"]
    ) -> Float[Tensor, "B O h w"]:
        """Call the network on x_t, timesteps and classes; the noise, and the logits of a learned variance."""
        with self.clock.showing(t):
            return self.denoiser(x.to(self.dtype), timestep=t, class_labels=y, return_dict=False)[0]


def one_sample(denoiser: nn.Module) -> Any:
    """Call a DiT on the meta device."""
    config: Any = denoiser.config
    side = config.sample_size
    zero = torch.zeros(1, dtype=torch.long, device="meta")
    return denoiser(torch.empty(1, config.in_channels, side, side, device="meta"), timestep=zero, class_labels=zero)


def list_sites(denoiser: nn.Module) -> list[Site]:
    """Describe each linear of a diffusers DiT, in the order in which a forward pass first uses it."""
    return structure(denoiser, one_sample)[0]


def list_attentions(denoiser: nn.Module) -> list[Attention]:
    """Describe the attentions of a diffusers DiT: one per block, of all tokens to all tokens."""
    return structure(denoiser, one_sample)[1]


def list_folds(sites: list[Site], attentions: list[Attention]) -> list[Fold]:
    """Describe which layer makes each input; ffn_down's is left out, because a GELU comes between.

    adaLN-Zero outputs shift, scale and gate of the attention, then of the feed-forward, each as wide as the model; the
    final layer's modulation outputs shift and scale.
    """
    found = value_folds(sites, attentions)
    for readers in readers_of_inputs(sites):
        first, names = readers[0], tuple(site.name for site in readers)
        width, block = first.in_features, first.path
        if first.role == "qkv":
            found.append(Fold((Source(f"{block}.norm1.linear", (0,), (width,)),), names))
        elif first.role == "ffn_up":
            found.append(Fold((Source(f"{block}.norm1.linear", (3 * width,), (4 * width,)),), names))
        elif first.name == "proj_out_2":
            found.append(Fold((Source("proj_out_1", (0,), (width,)),), names))
    return found
