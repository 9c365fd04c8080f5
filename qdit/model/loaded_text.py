"""The loaded form of pipelines that read prompts: a network, and a table of conditions that it is called with.

A family is a subclass with a `denoise` and a `one_sample`, beside an option (`qdit.model.text.TextModel`), which reads
the files of a pipeline. docs/add_a_model.md adds one.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxtyping import Bool, Int
from torch import Tensor, nn

from qdit.model.base import Attention, Fold, Site, Source, readers_of_inputs
from qdit.model.conditions import Conditions
from qdit.model.derive import structure
from qdit.model.loaded import Loaded
from qdit.model.prompt_encoders import T5, Encoder, plain
from qdit.model.roles import Patterns


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
    negative_apart: ClassVar[bool] = False
    """Whether the pipeline encodes the negative prompt in another way than prompts (`Encoder.negative`)."""

    def __init__(self, *parts: Any, table: Conditions | None, text_length: int) -> None:
        self.text_length = text_length
        super().__init__(*parts)
        self._reading = {
            s.name for s in self._sites if s.role == "cross_kv" or s.name.startswith("caption_projection.")
        }
        self._reading |= {a.sites[o] for a in self._attentions for o in ("k", "v") if f"{a.name}.to_k" in self._reading}
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
        return super().list_folds(sites) + projection_folds(self.projection, sites)

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


def projection_folds(projection: str | None, sites: Sequence[Site]) -> list[Fold]:
    """The folds of what reads the text into its projection, where that is one of the sites; all channels may mix."""
    if projection is None or projection not in {site.name for site in sites}:
        return []
    return [
        Fold((Source(projection, linear=(0,)),), tuple(site.name for site in readers), readers[0].in_features)
        for readers in readers_of_inputs(sites)
        if readers[0].role == "cross_kv"
    ]


@dataclass(frozen=True)
class OneSample:
    """One sample of some sizes (`Loaded.facts`), the first a prompt's tokens; equal ones give equal sites."""

    call: Callable[..., Any]
    sizes: tuple[int, ...]

    def __call__(self, denoiser: nn.Module) -> Any:
        """Call a network on the meta device."""
        return self.call(denoiser, *self.sizes)
