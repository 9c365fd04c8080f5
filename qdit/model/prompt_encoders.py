"""What encodes prompts: a T5 as it is called here, or a family's stock pipeline by its own `encode_prompt`."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""Tensors by the denoiser's keyword: of one prompt [L, …], of several [n, L, …]."""


class Encoder(Protocol):
    """A loaded text encoder.

    One that encodes negative prompts in another way has a `negative`, which is called as it is called itself.
    """

    length: int
    """Tokens of a prompt that are read; longer ones are cut, and counted."""

    def __call__(self, prompts: Sequence[str]) -> Rows:
        """What the denoiser is given of prompts: tensors [n, L, …] by its keyword, of one L whatever the prompts."""
        ...

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that have more tokens than are read."""
        ...


class T5:
    """A T5 encoder; rows behind the prompts' ends are zeros.

    Args:
        tokenizer, network: of a pipeline.
        length: tokens of a prompt.
        names: the denoiser's keywords for the rows and for their mask; None where the family takes no mask.
        clean: what becomes of a prompt first.
    """

    def __init__(
        self,
        tokenizer: Any,
        network: Any,
        length: int,
        names: tuple[str, str | None],
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.tokenizer, self.network, self.clean = tokenizer, network, clean or plain
        self.length, self.names = length, names

    def __call__(self, prompts: Sequence[str]) -> Rows:
        """See `Encoder`."""
        return self.rows(prompts)

    @torch.no_grad()
    def rows(self, prompts: Sequence[str], masked: bool = True) -> Rows:
        """What the denoiser is given of prompts; `masked`: whether rows behind their ends are zeros."""
        wanted = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer([self.clean(prompt) for prompt in prompts], add_special_tokens=True, **wanted)
        ids = ids.to(self.network.device)
        rows = self.network(ids.input_ids, attention_mask=ids.attention_mask)[0]
        found = {self.names[0]: rows.masked_fill(ids.attention_mask[..., None] == 0, 0) if masked else rows}
        return found if self.names[1] is None else found | {self.names[1]: ids.attention_mask}

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """See `Encoder`."""
        tokens = self.tokenizer([self.clean(prompt) for prompt in prompts]).input_ids
        return [prompt for prompt, ids in zip(prompts, tokens, strict=True) if len(ids) > self.length]


class StockEncoder:
    """What the stock pipeline makes of prompts.

    Args:
        encode: prompts -> the denoiser's keywords and their rows.
        tokenizer: of the encoder that reads the longest text.
        length: tokens that it reads.
        negative: as `encode`, of negative prompts where the pipeline encodes them in another way.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Rows],
        tokenizer: Any,
        length: int,
        negative: Callable[[list[str]], Rows] | None = None,
    ) -> None:
        self.encode, self.tokenizer, self.length = encode, tokenizer, length
        self.negative = None if negative is None else torch.no_grad()(negative)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Rows:
        """See `Encoder`."""
        return self.encode(list(prompts))

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """See `Encoder`."""
        tokens = self.tokenizer(list(prompts)).input_ids
        return [prompt for prompt, ids in zip(prompts, tokens, strict=True) if len(ids) > self.length]


class EncodedByStock:
    """A family whose prompts are encoded by its stock pipeline; it stands before `LoadedText` or one of its kinds."""

    tokenizer: ClassVar[str] = "tokenizer"
    """The pipeline's tokenizer of the encoder that reads the longest text."""

    @staticmethod
    @abstractmethod
    def encode(pipe: Any, length: int, prompts: list[str]) -> Rows:
        """What the denoiser is given of prompts, of which `length` tokens are read."""

    @classmethod
    def encoder_of(cls, pipe: Any, length: int) -> Encoder:
        """What encodes prompts as the stock pipeline does."""
        return StockEncoder(partial(cls.encode, pipe, length), getattr(pipe, cls.tokenizer), length)


def plain(prompt: str) -> str:
    """A prompt as the pipelines of PixArt and Latte read it without their cleaning of captions."""
    return prompt.lower().strip()
