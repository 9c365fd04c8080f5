"""What pipelines that read prompts have in common: parts, checks, and a table of conditions.

A family is two classes: an option (`TextModel`), which reads the files of a pipeline, and its loaded form
(`LoadedText`), which calls the network. docs/add_a_model.md adds one.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Le
from jaxtyping import Bool, Int
from torch import Tensor, nn

from qdit.checked import Checked
from qdit.errors import UserError
from qdit.model.base import Attention, Fold, Site, Source, readers_of_inputs
from qdit.model.checks import check_denoiser, check_schedule
from qdit.model.conditions import T5, Conditions, Encoder, conditions, plain
from qdit.model.derive import structure
from qdit.model.dit import check_size, locate_vae
from qdit.model.encoder import PARTS, conditions_folder, encoder_digest, remember
from qdit.model.files import check_class, check_vae, load_module, locate, read_config
from qdit.model.hub import at, named, short
from qdit.model.loaded import Loaded
from qdit.model.outline import CONFIGS, has_weights, outline, schedule
from qdit.model.roles import Patterns
from qdit.model.text_encoders import T5_ALONE, Kinds, check_parts, load_encoders
from qdit.model.weights import ENCODER, count_parameters
from qdit.storage.digest import digest


class LoadedText(Loaded):
    """A text pipeline ready to run; conditions are rows of its table (see `qdit.model.conditions`).

    Args:
        parts: as of `Loaded`.
        table: the encoded prompts; without them it can be looked at, and not run.
        text_length: tokens of a prompt.
    """

    names: ClassVar[tuple[str, str | None]] = ("encoder_hidden_states", None)
    """The denoiser's keywords for a T5's rows, and for the mask that hides some of them from attention."""
    roles: ClassVar[Patterns] = ()
    """Patterns of roles that go before the common ones (`qdit.model.roles`)."""
    projection: ClassVar[str | None] = None
    """The linear layer whose output the keys and values of a text read as it is, with nothing between (no norm)."""
    tokens: ClassVar[int] = 120
    """Of a prompt, where the pipeline does not say."""

    def __init__(self, *parts: Any, table: Conditions | None, text_length: int) -> None:
        self.text_length = text_length
        super().__init__(*parts)
        self._reading = {
            s.name for s in self._sites if s.role == "cross_kv" or s.name.startswith("caption_projection.")
        }
        self.take(table)

    def take(self, table: Conditions | None) -> None:
        """Have these prompts from now on; None has none."""
        self._table = table
        self.num_classes = self.null_class = table.null if table is not None else 0

    def having(self, table: Conditions | None) -> Self:
        """A copy with other prompts, of the same network."""
        made = copy(self)
        made.take(table)
        return made

    @property
    def table(self) -> Conditions:
        """The encoded prompts.

        Raises:
            RuntimeError: the model was loaded without, to be looked at and not run.
        """
        if self._table is None:
            raise RuntimeError("this model was loaded without conditions: see qdit.model.text.TextModel.encode")
        return self._table

    def attended(self, site: str, y: Int[Tensor, " B"]) -> Bool[Tensor, "B rows"] | None:
        """Which tokens of the prompts are attended to, where a site's rows are these tokens and the family has a mask.

        Of 300 rows of PixArt-Σ a prompt fills 20 or so, and all others are one vector: it would be most of a Hessian.
        Latte has no mask, and its blank rows are read as the others are: they count.
        """
        if site not in self._reading or self.names[1] is None:
            return None
        mask = self.table.rows[self.names[1]].bool()
        return mask[y.to(mask.device)].to(y.device)

    def list_folds(self, sites: list[Site]) -> list[Fold]:
        """Find what makes the inputs of cross-attentions' outputs, and of their keys and values.

        The projection of the text is read by the keys and values of all blocks, which must share one factor, and
        nothing comes between: all channels may mix. adaLN-single is left out: its one projection of the timestep
        serves all blocks, and a block's own table cannot absorb a factor alone.
        """
        if self.projection not in {site.name for site in sites}:
            return super().list_folds(sites)
        return super().list_folds(sites) + [
            Fold((Source(self.projection, linear=(0,)),), tuple(site.name for site in readers), readers[0].in_features)
            for readers in readers_of_inputs(sites)
            if readers[0].role == "cross_kv"
        ]

    @staticmethod
    @abstractmethod
    def one_sample(denoiser: Any, tokens: int) -> Any:
        """Call the network on the meta device for one sample with a prompt of so many tokens (and other `facts`)."""

    def structure(self, denoiser: nn.Module) -> tuple[list[Site], list[Attention]]:
        """Derive the sites and attentions."""
        return structure(denoiser, OneSample(type(self).one_sample, tuple(self.facts.values())), tuple(self.roles))

    @staticmethod
    def clean(prompt: str) -> str:
        """A prompt as it is encoded."""
        return plain(prompt)

    @classmethod
    def encoder_of(cls, pipe: Any, length: int) -> Encoder:
        """What encodes prompts as the stock pipeline does: by its T5."""
        return T5(pipe.tokenizer, pipe.text_encoder, length, cls.names, cls.clean)

    @property
    def facts(self) -> dict[str, int]:
        """See `Loaded`: tokens of a prompt."""
        return {"text_length": self.text_length}

    @classmethod
    def adapt(cls, transformer: Any, pipe: Any = None, text_length: int | None = None, **facts: int) -> Self:
        """The adapter of a transformer that diffusers loaded, without prompts, and not able to decode.

        Args:
            transformer: gets no gradients any more, and is not changed else.
            pipe: its pipeline, whose `max_sequence_length` is the number of tokens; None is the family's.
            text_length: tokens of a prompt; None is as said above.
            facts: the others of the family's.
        """
        told = (
            inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length") if pipe is not None else None
        )
        length = text_length or (told.default if told is not None and told.default else cls.tokens)
        parts = transformer.eval().requires_grad_(False), None, None, transformer.device, transformer.dtype
        return cls(*parts, table=None, text_length=length, **facts)


@dataclass(frozen=True)
class OneSample:
    """One sample of some sizes (`Loaded.facts`), the first a prompt's tokens; equal ones give equal sites."""

    call: Callable[..., Any]
    sizes: tuple[int, ...]

    def __call__(self, denoiser: nn.Module) -> Any:
        """Call a network on the meta device."""
        return self.call(denoiser, *self.sizes)


@dataclass(kw_only=True)
class TextModel(Checked, ABC):
    """A pipeline that is conditioned on prompts, and how they are encoded; a family is a subclass.

    Args:
        name: in tables.
        path: a folder in diffusers' format, or a hub id.
        revision: of a hub id.
        vae_path, vae_revision: None, or another autoencoder than the pipeline's own.
        text_length: tokens of a prompt.
        text_dtype: of the text encoder; float16 overflows in T5.
    """

    transformer: ClassVar[str]
    """The name of diffusers' class."""
    loaded: ClassVar[type[LoadedText]]
    """What is made of the parts."""
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

    name: str
    path: str
    revision: str | None = None
    vae_path: str | None = None
    vae_revision: str | None = None
    text_length: Annotated[int, Ge(1), Le(4096)]
    text_dtype: Literal["float32", "bfloat16"] = "float32"

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
        denoiser = outline(getattr(diffusers, self.transformer), self.checked_transformer(root), dtype)
        vae = self.outline_autoencoder(root / "vae") if self.vae_path is None else None
        rest = schedule(root / "scheduler", self.loaded.schedulers), torch.device(device), dtype
        made = self.loaded(denoiser, None, *rest, table=None, text_length=self.text_length, **self.facts(vae))
        made.complete(vae, rest[0])
        return made

    def outline_autoencoder(self, folder: Path) -> nn.Module | None:
        """The autoencoder on the meta device; None where its folder is not there."""
        import diffusers

        if not (folder / "config.json").is_file():
            return None
        self.check_autoencoder(folder)
        return outline(getattr(diffusers, self.autoencoder), folder, torch.float32)

    def check_autoencoder(self, folder: Path) -> None:
        """Refuse a folder that does not hold the family's autoencoder, or not one that can be.

        Raises:
            UserError: naming the class found, or the values.
        """
        check_vae(folder)

    def facts(self, vae: nn.Module | None) -> dict[str, int]:
        """What else the loaded form is told, beside the text's length (see `Loaded.facts`)."""
        return {}

    def checked_transformer(self, root: Path) -> Path:
        """The transformer's folder, whose config is one of the family.

        Raises:
            UserError: it is missing or foreign.
        """
        folder = root / "transformer"
        config = read_config(folder)
        check_class(folder, config, (self.transformer,))
        self.check_config(folder / "config.json", config)
        if has_weights(folder):
            check_size(folder, config)
        return folder

    def text_parts(self, root: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The parts of a pipeline that encode prompts, as attributes of its names.

        Raises:
            UserError: transformers is not installed, or they are of other classes.
        """
        return load_encoders(root, self.encoders, dtype, device)

    def encode(self, prompts: Sequence[str], cache_dir: Path, device: torch.device) -> Conditions:
        """The table of prompts, the negative one last; the encoder is loaded only if the cache lacks one, and freed.

        Raises:
            UserError: the encoder is needed and not there.
        """
        self.checked()  # before gigabytes are read
        known = encoder_digest(self.path, self.revision, cache_dir)
        if known is None:
            if (folder := Path(self.path).expanduser()).joinpath("text_encoder").is_dir():
                check_parts(folder)
            raise UserError(
                f"{self.path} has no text_encoder/, and no run with this cache_dir has seen it; give the whole "
                "pipeline, or the cache_dir of a run that encoded these prompts"
            )
        about = [known, type(self).__name__, self.text_length, self.text_dtype]

        def load() -> Encoder:
            ends = ("json", "safetensors", "model", "txt")  # never a pickle
            wanted = [
                "model_index.json",
                *(f"{part}*/*.{end}" for part in PARTS for end in ends),
            ]
            root = locate(self.path, self.revision, "model.path", wanted)
            check_parts(root)
            parts = self.text_parts(root, getattr(torch, self.text_dtype), device)
            return self.loaded.encoder_of(parts, self.text_length)

        table = conditions(prompts, conditions_folder(cache_dir) / digest(about), load)
        remember(self.path, known, cache_dir)
        return table

    def encoder_bytes(self) -> int | None:
        """How many bytes the loaded text encoder takes; None where its folder is not here (yet).

        Raises:
            UserError: it is damaged or pickled.
        """
        folders = [folder for folder in Path(self.path).expanduser().glob("text_encoder*") if folder.is_dir()]
        size = getattr(torch, self.text_dtype).itemsize
        return sum(count_parameters(folder, ENCODER) for folder in folders) * size if folders else None

    def checked(self) -> tuple[Path, Path, dict[str, Any]]:
        """The folders of the pipeline and of the autoencoder, and the scheduler's config; no weights are read.

        Raises:
            UserError: a file is missing, damaged, foreign, or pickled.
        """
        folders = ["transformer", "scheduler"] + ["vae"] * (self.vae_path is None)
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
        denoiser = load_module(getattr(diffusers, self.transformer), root / "transformer", dtype)
        return denoiser, load_module(getattr(diffusers, self.autoencoder), vae, torch.float32), schedule
