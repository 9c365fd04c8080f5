"""Generated samples on disk (`SampleSet`), and in memory (`Drawn`) where a search or a notebook has a few of its own.

A set on disk is fixed chunks of latents and of features, written once and read by every metric.

A chunk is one sampling batch, so a set that was interrupted and resumed has the bytes of an undisturbed one. A chunk
that is damaged, or that was made on another machine, library version or execution (`qdit.execution.stamp`), is made
again. Processes that share a set make each chunk once: one works, the others wait. Images are never stored: the
deterministic decoder makes them from the latents, which are smaller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdit.errors import UserError
from qdit.eval.base import Piece
from qdit.eval.pieces import Collected, collected, decoded, read_prompts
from qdit.storage.locks import exclusive
from qdit.storage.seal import TENSORS_DIGEST, tensors_about
from qdit.storage.shelf import Shelf, Stamp, without_execution

FEATURES = "features-"
"""Before an extractor's name, the kind of file that its features are in."""


@dataclass(eq=False)  # a set is itself and no other: what was computed of it is remembered by identity
class SampleSet:
    """Samples 0 … n-1 on a shelf; see `qdit.eval.base.Samples`.

    Args:
        shelf: where the chunks are, what they are of and what makes them.
        n: number of samples.
        chunk: samples per chunk (the sampling batch size).
        generate: indices -> final latents [B, C, h, w]; called for missing chunks only.
        decode: latents -> uint8 images [B, 3, H, W].
        extract: extractor name -> (images -> features by name).
        progress: called with the number of samples that exist, after each chunk of latents that was generated.
        prompts: what each sample was asked to show.
        clusters: the id of each sample's prompt, where samples of one prompt belong together.
        framewise: whether `decode` may be given some frames of a clip.
        frames_per_second: of clips, which files of them say of themselves.
        weights: extractor name -> a digest of the user's files that it reads; None for one whose name says it all.
    """

    shelf: Shelf
    n: int
    chunk: int
    generate: Callable[[list[int]], Tensor]
    decode: Callable[[Tensor], Tensor]
    extract: Callable[[str], Callable[[Tensor], dict[str, Tensor]]]
    progress: Callable[[int], None] = lambda done: None
    prompts: Sequence[str] = ()
    clusters: Sequence[str] | None = None
    framewise: bool = True
    frames_per_second: int = 8
    weights: Callable[[str], str | None] = lambda name: None
    generated: int = field(default=0, init=False)  # samples made by this process, for the rate
    compiling: float = field(default=0.0, init=False)  # seconds in which the network was compiled for them
    ran: dict[str, int] = field(default_factory=dict, init=False)  # quantized layers, by how an engine multiplied them

    def indices(self) -> list[list[int]]:
        """The sample indices of each chunk."""
        return [list(range(a, min(a + self.chunk, self.n))) for a in range(0, self.n, self.chunk)]

    @property
    def folder(self) -> Path:
        """Where the chunks are."""
        return self.shelf.folder

    @property
    def made(self) -> Stamp | None:
        """What makes the samples, or made them; None where it is not known."""
        return self.shelf.made

    def complete(self) -> bool:
        """Whether every chunk of latents is on disk, and whole, so that nothing needs to be generated."""
        return all(self._found("latents", number) is not None for number in range(len(self.indices())))

    def adopt(self, made: Stamp | None) -> bool:
        """Take the chunks as `made` left them (None: as any did); false, and nothing changes, if one is missing."""
        before, self.shelf = self.shelf, replace(self.shelf, made=made)
        if self.complete():
            return True
        self.shelf = before
        return False

    def _shelf(self, kind: str, number: int) -> Shelf:
        """Where a chunk is: features are of their chunk of latents, and the same however layers multiply."""
        if kind == "latents":
            return self.shelf
        latents = tensors_about(self.shelf.path(_name("latents", number))).get(TENSORS_DIGEST)
        made = self.made and without_execution(self.made)
        about: Any = {"of": self.shelf.identity, "latents": latents}
        if weights := self.weights(kind.removeprefix(FEATURES)):
            about["weights"] = weights
        return replace(self.shelf, identity=about, made=made)

    def _stored(self, kind: str, number: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a chunk, from disk or made and stored."""
        if (stored := self._found(kind, number)) is not None:
            return stored
        with exclusive(self.folder / ".lock"):
            if (stored := self._found(kind, number, quiet=True)) is None:
                made = make()  # the latents of features, too
                stored = self._shelf(kind, number).save(_name(kind, number), made)
        return stored

    def _found(self, kind: str, number: int, quiet: bool = False) -> dict[str, Tensor] | None:
        """The tensors of a chunk that is on disk, whole, and made as the set is."""
        stored = self._shelf(kind, number).load(_name(kind, number), quiet)
        if stored is None or {len(tensor) for tensor in stored.values()} != {len(self.indices()[number])}:
            return None
        return stored

    def _latent_chunk(self, number: int) -> Tensor:
        def make() -> dict[str, Tensor]:
            index = self.indices()[number]
            latents = self.generate(index).float()
            self.generated += len(index)
            self.progress(index[-1] + 1)
            return {"latents": latents}

        return self._stored("latents", number, make)["latents"]

    def latents(self) -> Tensor:
        """Final latents, float32 [n, C, h, w]; missing chunks are sampled."""
        return torch.cat([self._latent_chunk(number) for number in range(len(self.indices()))])

    def images(self) -> Iterator[Tensor]:
        """Decoded images, uint8 [b, 3, H, W] a chunk."""
        for number in range(len(self.indices())):
            yield self.decode(self._latent_chunk(number))

    def pieces(self, extractors: Sequence[str] = ()) -> Iterator[Piece]:
        """All samples in pieces; missing features of these extractors are made of the same decoded frames."""
        for number in range(len(self.indices())):
            wanted = [name for name in extractors if self._found(_features(name), number, quiet=True) is None]
            yield from self._read(number, wanted)

    def missing(self, extractors: Sequence[str]) -> list[str]:
        """Those of these extractors of which a chunk of features is not on disk."""
        numbers = range(len(self.indices()))
        return [
            name for name in extractors if any(self._found(_features(name), k, quiet=True) is None for k in numbers)
        ]

    def _read(self, number: int, extractors: Sequence[str]) -> Iterator[Piece]:
        """A chunk in pieces; these features of it are stored at its end."""
        found = {name: Collected(self.extract(name)) for name in extractors}
        for piece in decoded(self._latent_chunk(number), self.decode, self.framewise):
            for each in found.values():
                each.read(piece)
            yield piece
        for name, each in found.items():
            self._stored(_features(name), number, each.finish)

    def features(self, extractor: str) -> dict[str, Tensor]:
        """Features of every sample by name, each float32 [n, D], of clips [n, T, D]; missing chunks are extracted."""
        chunks = []
        for number in range(len(self.indices())):

            def make(number: int = number) -> dict[str, Tensor]:
                return collected(
                    self.extract(extractor), decoded(self._latent_chunk(number), self.decode, self.framewise)
                )

            chunks.append(self._stored(_features(extractor), number, make))
        return {name: torch.cat([c[name] for c in chunks]) for name in chunks[0]}

    def texts(self, extractor: str) -> Tensor:
        """Features of each sample's prompt, [n, D]."""
        return read_prompts(self.extract(extractor), self.prompts)


def no_extractor(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """The extractors of samples that only paired metrics are to see.

    Raises:
        UserError: always.
    """
    raise UserError(f"features ({name}) have no value a sample; a paired metric is needed here, such as sqnr or psnr")


@dataclass(eq=False)  # metrics remember what they found of a set, which is itself and no other
class Drawn:
    """Samples in memory; see `qdit.eval.base.Samples`."""

    chunks: list[Tensor]
    decode: Callable[[Tensor], Tensor]
    extract: Callable[[str], Callable[[Tensor], dict[str, Tensor]]] = no_extractor
    prompts: Sequence[str] = ()
    clusters: Sequence[str] | None = None
    framewise: bool = True
    frames_per_second: int = 8
    n: int = field(init=False)
    _features: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.n = sum(map(len, self.chunks))

    def latents(self) -> Tensor:
        """Final latents, float32 [n, C, h, w]."""
        return torch.cat(self.chunks)

    def images(self) -> Iterator[Tensor]:
        """Decoded images, uint8 [k, 3, H, W], chunk by chunk."""
        return map(self.decode, self.chunks)

    def pieces(self, extractors: Sequence[str] = ()) -> Iterator[Piece]:
        """All samples in pieces; features of these extractors are made of the same decoded frames, and kept."""
        found = {name: Collected(self.extract(name)) for name in extractors}
        for chunk in self.chunks:
            for piece in decoded(chunk, self.decode, self.framewise):
                for each in found.values():
                    each.read(piece)
                yield piece
        self._features |= {name: each.finish() for name, each in found.items()}

    def missing(self, extractors: Sequence[str]) -> list[str]:
        """Those of these extractors whose features are not in memory."""
        return [name for name in extractors if name not in self._features]

    def features(self, extractor: str) -> dict[str, Tensor]:
        """Features of every sample by name, each float32 [n, D], of clips [n, T, D]."""
        for _ in self.pieces(self.missing([extractor])) if self.missing([extractor]) else ():
            pass
        return self._features[extractor]

    def texts(self, extractor: str) -> Tensor:
        """Features of each sample's prompt, [n, D]."""
        return read_prompts(self.extract(extractor), self.prompts)


def _features(extractor: str) -> str:
    """The kind of file that an extractor's features are in."""
    return FEATURES + extractor


def _name(kind: str, number: int) -> str:
    return f"{kind}_{number:05d}"
