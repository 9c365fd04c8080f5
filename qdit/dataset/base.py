"""A data set: the conditions of samples, their names, and the reference statistics to compare with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdit.dataset.labels import LabelStrategy
from qdit.model.base import DiffusionModel


@dataclass(kw_only=True)
class Source(ABC):
    """What samples are conditioned on, by number (a class, or a prompt), and what they are compared with."""

    name: str
    image_size: int | None
    """Pixels along a side; None where nothing is compared."""
    reference: str
    """Name of the reference statistics that distribution metrics compare with."""
    suite: ClassVar[str | None] = None
    """A name of its prompts for metrics that are defined on no others."""

    @abstractmethod
    def labels(self, indices: Sequence[int], seed: int) -> Int[Tensor, " B"]:
        """Return the number of each sample index's condition; the null condition never occurs."""

    def batches(self, first: int, count: int, size: int, seed: int) -> Iterator[tuple[list[int], Int[Tensor, " B"]]]:
        """Indices and labels of the samples `first` … `first + count - 1`, `size` at a time."""
        for chunk in torch.arange(first, first + count).split(size):
            yield chunk.tolist(), self.labels(chunk.tolist(), seed)

    def captions_of(self, count: int, seed: int) -> list[str]:
        """The captions of the first `count` samples."""
        names = self.class_names()
        return [names[number] for number in self.labels(list(range(count)), seed).tolist()]

    def clusters_of(self, numbers: Sequence[int]) -> list[str] | None:
        """The id of each condition, by which errors are grouped; None for classes, whose samples are separate."""
        return None

    def shared_with_evaluation(self) -> str | None:
        """A sentence where samples of a search may have the evaluation's conditions one by one; None for classes."""
        return None

    def asked(self, numbers: Sequence[int]) -> dict[str, list[str] | None]:
        """`prompts` and `clusters` of samples in memory (`qdit.eval.samples.Drawn`), by their conditions."""
        names = self.class_names()
        return {"prompts": [names[number] for number in numbers], "clusters": self.clusters_of(numbers)}

    @abstractmethod
    def class_names(self) -> list[str]:
        """Return a caption for each number."""

    @abstractmethod
    def protocol(self) -> str:
        """Name what changes the conditions, readably."""

    @abstractmethod
    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each mismatch with a model."""


@dataclass(kw_only=True)
class Dataset(Source):
    """Classes of equal frequency and without names; a data set that has more information is a subclass."""

    num_classes: int
    strategy: LabelStrategy
    """How classes are drawn."""

    def frequencies(self) -> Float[Tensor, " K"]:
        """Return the share of each class in the data."""
        return torch.full((self.num_classes,), 1 / self.num_classes)

    def labels(self, indices: Sequence[int], seed: int) -> Int[Tensor, " B"]:
        """Return the class of each sample index; the null class never occurs."""
        return self.strategy.draw(indices, seed, self.frequencies())

    def class_names(self) -> list[str]:
        """Return a caption for each class."""
        return [f"class {i}" for i in range(self.num_classes)]

    def protocol(self) -> str:
        """Describe, for the protocol, everything that changes the labels."""
        return f"{self.name}|labels={type(self.strategy).__name__.removesuffix('Labels').lower()}"

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each mismatch with a model."""
        problems = []
        if model.num_classes != self.num_classes:
            problems.append(
                f"dataset {self.name} has {self.num_classes} classes, the model {model.num_classes}; "
                "choose a dataset and a model that belong together (dit_xl_2_256 with imagenet256)"
            )
        if model.image_size != self.image_size:
            problems.append(
                f"dataset {self.name} has images of {self.image_size}×{self.image_size}, the model makes "
                f"{model.image_size}×{model.image_size}; choose a dataset and a model that belong together"
            )
        return problems
