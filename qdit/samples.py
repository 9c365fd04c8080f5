"""A set of generated samples on disk: fixed chunks of latents and of features, written once and read by every metric.

A chunk is one sampling batch, so a set that was interrupted and resumed has the bytes of an undisturbed one. Processes
that share a set make each chunk once: one works, the others wait. Images are never stored: the decoder, which is
deterministic, makes them of the latents, which are smaller.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qdit.locks import exclusive
from qdit.tensors import load_tensors, save_tensors


@dataclass(eq=False)  # a set is itself and no other: what was computed of it is remembered by identity
class SampleSet:
    """Samples 0 … n-1 in `folder`; see `qdit.eval.base.Samples`.

    Args:
        folder: where the chunks are.
        n: number of samples.
        chunk: samples a chunk (the sampling batch size).
        generate: indices -> final latents [B, C, h, w]; called for missing chunks only.
        decode: latents -> uint8 images [B, 3, H, W].
        extract: extractor name -> (images -> features by name).
        progress: called with the number of samples that exist, after each chunk of latents that was generated.
    """

    folder: Path
    n: int
    chunk: int
    generate: Callable[[list[int]], Tensor]
    decode: Callable[[Tensor], Tensor]
    extract: Callable[[str], Callable[[Tensor], dict[str, Tensor]]]
    progress: Callable[[int], None] = lambda done: None
    generated: int = field(default=0, init=False)  # samples made by this process, for the rate

    def indices(self) -> list[list[int]]:
        """The sample indices of each chunk."""
        return [list(range(a, min(a + self.chunk, self.n))) for a in range(0, self.n, self.chunk)]

    def complete(self) -> bool:
        """Whether every chunk of latents is on disk, so that nothing needs to be generated."""
        return all(self._path("latents", number).exists() for number in range(len(self.indices())))

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}_{number:05d}.safetensors"

    def _stored(self, kind: str, number: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a chunk, from disk or made and stored."""
        if (stored := self._found(kind, number)) is not None:
            return stored
        with exclusive(self.folder / ".lock"):
            stored = self._found(kind, number)
            return save_tensors(self._path(kind, number), make()) if stored is None else stored

    def _found(self, kind: str, number: int) -> dict[str, Tensor] | None:
        """The tensors of a chunk that is on disk, and whole."""
        path = self._path(kind, number)
        if not path.exists():
            return None
        stored = load_tensors(path)
        return stored if len(next(iter(stored.values()))) == len(self.indices()[number]) else None

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

    def features(self, extractor: str) -> dict[str, Tensor]:
        """Features of every sample by name, each float32 [n, D]; missing chunks are extracted."""
        chunks = []
        for number in range(len(self.indices())):

            def make(number: int = number) -> dict[str, Tensor]:
                return self.extract(extractor)(self.decode(self._latent_chunk(number)))

            chunks.append(self._stored(f"features-{extractor}", number, make))
        return {name: torch.cat([c[name] for c in chunks]) for name in chunks[0]}
