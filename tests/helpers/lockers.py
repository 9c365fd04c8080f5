"""What other processes do in tests of locks: spawned, they import this, and torch if they use it."""

import os
import time
from pathlib import Path

from qdit.storage.locks import exclusive, once


def made_by(folder: Path, what: str) -> None:
    """Leave a mark for each time that something was made; slow enough that two processes meet."""
    (folder / f"{what}-{os.getpid()}-{time.monotonic_ns()}.mark").touch()
    time.sleep(0.15)


def make_once(folder: Path, ready) -> None:
    def make() -> None:
        made_by(folder, "once")
        (folder / "data").write_text("whole")

    ready.wait()
    assert once(folder / "data", make).read_text() == "whole"


def sample_set(folder: Path):
    import torch

    from qdit.eval.samples import SampleSet
    from qdit.storage.shelf import Shelf

    def generate(indices: list[int]) -> torch.Tensor:
        made_by(folder, f"latents{indices[0]}")
        return torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)

    def extract(name: str):
        def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
            made_by(folder, f"features{int(images[0, 0, 0, 0])}")
            return {"pooled": images.flatten(1).float()}

        return features

    return SampleSet(Shelf(folder / "set"), 7, 2, generate, lambda x: x.to(torch.uint8), extract)


def sample(folder: Path, ready) -> None:
    ready.wait()
    samples = sample_set(folder)
    assert samples.features("lite0")["pooled"][:, 0].tolist() == list(range(7))
    assert samples.latents()[:, 0, 0, 0].tolist() == list(range(7))


def hold(folder: Path, taken) -> None:
    with exclusive(folder / ".lock"):
        taken.set()
        time.sleep(600)
