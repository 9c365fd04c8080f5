"""The option of pipelines that read prompts: which files, what is checked of them, and how prompts are encoded.

A family is a subclass, beside its loaded form (`qdit.model.loaded_text.LoadedText`), which calls the network.
docs/add_a_model.md adds one.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import nn

from qdit.assets import folder_of
from qdit.checked import Checked
from qdit.errors import UserError
from qdit.model.checks import check_denoiser, check_schedule
from qdit.model.conditions import Conditions, conditions
from qdit.model.dit import check_size, locate_vae
from qdit.model.encoder import PARTS, conditions_folder, encoder_digest, remember
from qdit.model.files import check_class, check_vae, load_module, locate, read_config
from qdit.model.hub import at, named, short
from qdit.model.loaded_text import LoadedText
from qdit.model.outline import CONFIGS, has_weights, schedule_of, shell, shell_beside
from qdit.model.prompt_encoders import Encoder
from qdit.model.text_encoders import T5_ALONE, Kinds, check_parts, load_encoders
from qdit.model.weights import ENCODER, count_parameters
from qdit.storage.digest import digest


@dataclass(kw_only=True)
class TextModel(Checked, ABC):
    """A pipeline that is conditioned on prompts, and how they are encoded; a family is a subclass.

    Args:
        name: in tables.
        path: a folder in diffusers' format, a hub id, or `embedded:NAME` of a model that comes with qdit.
        revision: of a hub id.
        vae_path, vae_revision: None, or another autoencoder than the pipeline's own.
        text_length: tokens of a prompt.
        text_dtype: of the text encoder; float16 overflows in T5.
    """

    transformer: ClassVar[str]
    """The name of diffusers' class."""
    loaded: ClassVar[type[LoadedText]]
    """What is made of the parts."""
    legacy: ClassVar[tuple[str, ...]] = ()
    """Names under which the class was published, which diffusers reads as it."""
    networks: ClassVar[tuple[str, ...]] = ("transformer",)
    """The folders of what denoises; several take turns over the timesteps."""
    counts: ClassVar[tuple[str, ...]] = ("caption_channels",)
    """Whole numbers that the transformer's config has beside those of all classes."""
    norm_type: ClassVar[str] = "ada_norm_single"
    """The one that the class knows."""
    reading: ClassVar[str] = "lower-case"
    """What becomes of a prompt before it is encoded, for the protocol."""
    autoencoder: ClassVar[str] = "AutoencoderKL"
    """The name of diffusers' class."""
    encoders: ClassVar[Kinds] = T5_ALONE
    """The folders of the text encoders, and their classes."""
    pipeline: ClassVar[str | None] = None
    """The name of diffusers' pipeline, where its own `encode_prompt` encodes."""

    name: str
    path: str
    revision: str | None = None
    vae_path: str | None = None
    vae_revision: str | None = None
    text_length: Annotated[int, Ge(1), Le(4096)]
    text_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def negative_apart(self) -> bool:
        """Whether the negative prompt is encoded in another way than prompts."""
        return self.loaded.negative_apart

    def protocol(self) -> str:
        """Name what changes the full-precision outputs, readably."""
        vae = named(self.vae_path, short(self.vae_revision)) or "own"
        name = self.name + at(self.path, short(self.revision))
        return f"{name}|vae={vae}|text={self.text_length} {self.text_dtype} {self.reading}"

    def load(self, device: str | torch.device, dtype: torch.dtype, table: Conditions | None = None) -> LoadedText:
        """Read the checkpoint, check it, and move it to `device`; without a `table` it can be looked at, not run."""
        denoiser, vae, schedule = self.parts(dtype)
        parts = denoiser.to(device), vae.to(device), schedule, torch.device(device), dtype
        return self.loaded(*parts, table=table, text_length=self.text_length, **self.facts(vae))

    def outline(self, device: str | torch.device, dtype: torch.dtype) -> LoadedText:
        """The pipeline by its configs alone, of which the transformer's must be there: to be looked at, not run.

        Raises:
            UserError: a config is missing or foreign, or weights are there and do not fit to it.
        """
        import diffusers

        root = locate(self.path, self.revision, "model.path", CONFIGS)
        self.checked_transformer(root)
        denoiser = self.network(root, lambda folder: shell(getattr(diffusers, self.transformer), folder, dtype))
        vae = shell_beside(root, self.vae_path, self.autoencoder, self.check_autoencoder)
        parts = denoiser, None, None, torch.device(device), dtype
        made = self.loaded(*parts, table=None, text_length=self.text_length, **self.facts(vae))
        made.complete(vae, schedule_of(root / "scheduler", self.loaded.schedulers))
        return made

    def check_autoencoder(self, folder: Path) -> None:
        """Refuse a folder that does not hold the family's autoencoder, or not one that can be.

        Raises:
            UserError: naming the class found, or the values.
        """
        check_vae(folder)

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """What else the loaded form is told, beside the text's length (see `Loaded.facts`)."""
        return {}

    def checked_transformer(self, root: Path) -> None:
        """Refuse a pipeline whose transformer is not one of the family.

        Raises:
            UserError: it is missing or foreign.
        """
        for name in self.networks:
            config = read_config(folder := root / name)
            check_class(folder, config, (self.transformer, *self.legacy))
            self.check_config(folder / "config.json", config)
            if has_weights(folder):
                check_size(folder, config)

    def network(self, root: Path, make: Callable[[Path], nn.Module]) -> nn.Module:
        """What denoises, of which `make` makes a folder's part."""
        return make(root / "transformer")

    def text_parts(self, root: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The parts of a pipeline that encode prompts, as attributes of its names; or the pipeline with nothing else.

        Raises:
            UserError: transformers is not installed, or they are of other classes.
        """
        parts = load_encoders(root, self.encoders, dtype, device)
        if self.pipeline is None:
            return parts
        import diffusers

        others = dict.fromkeys(("transformer", "vae", "scheduler"))
        return getattr(diffusers, self.pipeline)(**others, **vars(parts))

    def encode(self, prompts: Sequence[str], cache_dir: Path, device: torch.device) -> Conditions:
        """The table of prompts, the negative one last; the encoder is loaded only if the cache lacks one, and freed.

        Raises:
            UserError: the encoder is needed and not there.
        """
        self.checked()  # before gigabytes are read
        known = encoder_digest(self.path, self.revision, cache_dir)
        if known is None:
            if (folder := folder_of(self.path)).joinpath("text_encoder").is_dir():
                check_parts(folder)
            raise UserError(
                f"{self.path} has no text_encoder/, and no run with this cache_dir has seen it; give the whole "
                "pipeline, or the cache_dir of a run that encoded these prompts"
            )
        about = [known, type(self).__name__, self.text_length, self.text_dtype]

        def load() -> Encoder:
            ends = ("json", "safetensors", "model", "txt", "jinja")  # never a pickle
            wanted = [
                "model_index.json",
                *(f"{part}*/*.{end}" for part in PARTS for end in ends),
            ]
            root = locate(self.path, self.revision, "model.path", wanted)
            check_parts(root)
            parts = self.text_parts(root, getattr(torch, self.text_dtype), device)
            return self.loaded.encoder_of(parts, self.text_length)

        place = conditions_folder(cache_dir) / digest(about)
        table = conditions(prompts, place, load, self.negative_apart)
        remember(self.path, known, cache_dir)
        return table

    def encoder_bytes(self) -> int | None:
        """How many bytes the loaded text encoder takes; None where its folder is not here (yet).

        Raises:
            UserError: it is damaged or pickled.
        """
        folders = [folder for folder in folder_of(self.path).glob("text_encoder*") if folder.is_dir()]
        size = getattr(torch, self.text_dtype).itemsize
        return sum(count_parameters(folder, ENCODER) for folder in folders) * size if folders else None

    def checked(self) -> tuple[Path, Path, dict[str, Any]]:
        """The folders of the pipeline and of the autoencoder, and the scheduler's config; no weights are read.

        Raises:
            UserError: a file is missing, damaged, foreign, or pickled.
        """
        folders = [*self.networks, "scheduler"] + ["vae"] * (self.vae_path is None)
        wanted = ["model_index.json"] + [f"{part}/*.{end}" for part in folders for end in ("json", "safetensors")]
        root = locate(self.path, self.revision, "model.path", wanted)
        self.checked_transformer(root)
        vae = root / "vae" if self.vae_path is None else locate_vae(self.vae_path, self.vae_revision)
        self.check_autoencoder(vae)
        schedule = read_config(root / "scheduler", "scheduler_config.json")
        check_schedule(root / "scheduler" / "scheduler_config.json", schedule, self.loaded.schedulers)
        return root, vae, schedule

    def check_config(self, file: Path, config: dict[str, Any]) -> None:
        """Refuse values of a transformer's config that cannot be.

        Raises:
            UserError: naming each.
        """
        check_denoiser(file, config, *self.counts, norm_type=self.norm_type)

    def parts(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """Transformer in `dtype`, autoencoder in float32, and the scheduler's config.

        Raises:
            UserError: a file is missing, damaged, foreign, or pickled.
        """
        import diffusers

        root, vae, schedule = self.checked()
        denoiser = self.network(root, lambda folder: load_module(getattr(diffusers, self.transformer), folder, dtype))
        return denoiser, load_module(getattr(diffusers, self.autoencoder), vae, torch.float32), schedule
