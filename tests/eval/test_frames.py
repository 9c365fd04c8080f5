"""One pass over decoded frames feeds all metrics, in pieces."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from qdit.errors import UserError
from qdit.eval.base import Piece
from qdit.eval.frames import survey
from qdit.eval.paired import PSNR, SSIM, WorstPSNR, WorstSQNR, WorstSSIM, psnr, sqnr, ssim
from qdit.eval.pieces import FRAMES, decoded, first_of
from qdit.eval.samples import Drawn, SampleSet
from qdit.eval.video import FeatureDistance, FrameConsistency, MotionEnergy, MotionSmoothnessBlend, TemporalFlickering
from qdit.storage.shelf import Shelf


def clips(n: int, length: int, seed: int = 0, side: int = 16) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, length, 3, side, side), dtype=torch.uint8, generator=g)


@pytest.mark.parametrize("length", [2, 8, FRAMES, FRAMES + 1, 2 * FRAMES, 40])
def test_long_clips_have_the_values_of_whole_ones(held, length):
    made, full = clips(3, length, 0), clips(3, length, 1)
    own, other = held(images=made), held(images=full)
    each = torch.stack([psnr(full[i], made[i]) for i in range(3)])
    structure = torch.stack([ssim(full[i], made[i]) for i in range(3)])
    assert PSNR().each(own, other).tolist() == pytest.approx(each.mean(1).tolist())
    assert WorstPSNR().each(own, other).tolist() == pytest.approx(each.amin(1).tolist())
    assert SSIM().each(own, other).tolist() == pytest.approx(structure.mean(1).tolist())
    assert WorstSSIM().each(own, other).tolist() == pytest.approx(structure.amin(1).tolist())
    assert PSNR().compute(own, other).by_frame == pytest.approx(each.mean(0).tolist())
    steps = made.double().diff(dim=1) / 255
    assert TemporalFlickering().each(own, own).tolist() == pytest.approx((1 - steps.abs().mean((1, 2, 3, 4))).tolist())
    assert MotionEnergy().each(own, own).tolist() == pytest.approx(steps.square().mean((1, 2, 3, 4)).tolist())
    if length > 2:
        blend = (made[:, :-2].int() + made[:, 2:].int()) // 2
        error = (made[:, 1:-1].int() - blend).abs().double()[:, ::2].mean((1, 2, 3, 4))
        assert MotionSmoothnessBlend().each(own, own).tolist() == pytest.approx((1 - error / 255).tolist())


def test_latents_have_a_curve_and_a_worst_frame(held):
    g = torch.Generator().manual_seed(0)
    full, made = (torch.randn(2, 4, 6, 8, 8, generator=g) for _ in range(2))
    result = WorstSQNR().compute(held(latents=made), held(latents=full))
    each = torch.stack(
        [torch.stack([sqnr(full[n, None, :, t], made[n, None, :, t])[0] for t in range(6)]) for n in (0, 1)]
    )
    assert result.value == pytest.approx(float(each.amin(1).mean()))
    assert result.by_frame == pytest.approx(each.mean(0).tolist())


class Counter:
    """Decodes latents, and counts the frames; extracts features, and counts those."""

    def __init__(self):
        self.decoded = self.extracted = 0

    def decode(self, latents):
        frames = latents.transpose(1, 2).flatten(0, 1) if latents.ndim == 5 else latents
        self.decoded += len(frames)
        pixels = frames[:, :3].mul(20).add(128).clamp(0, 255).to(torch.uint8).repeat(1, 1, 2, 2)
        return pixels.unflatten(0, (len(latents), -1)) if latents.ndim == 5 else pixels

    def extract(self, _):
        def extractor(images):
            self.extracted += len(images)
            return {"pooled": images.float().mean((2, 3))}

        return extractor


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 20, 8, 8)])
@pytest.mark.parametrize("stored", [True, False])
def test_everything_is_decoded_once(tmp_path, shape, stored):
    """Pixels, features of two extractors, differences to full precision: all of one decoding."""
    sets, counters = [], []
    for seed in (0, 1):
        latents = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))
        counter = Counter()
        counters.append(counter)
        of_disk = SampleSet(
            Shelf(tmp_path / str(seed)), 5, 2, lambda i, x=latents: x[i], counter.decode, counter.extract
        )
        sets.append(of_disk if stored else Drawn(list(latents.split(2)), counter.decode, counter.extract))
    metrics = [PSNR(), SSIM(), FeatureDistance(extractor="lite0"), FeatureDistance(extractor="inception")]
    if len(shape) == 4:
        metrics += [TemporalFlickering(), WorstPSNR(), FrameConsistency(extractor="lite0")]
    survey(metrics, *sets)
    frames = 5 * (shape[1] if len(shape) == 4 else 1)
    results = [metric.compute(*sets) for metric in metrics]
    assert all(np.isfinite(result.value) for result in results)
    assert [(c.decoded, c.extracted) for c in counters] == [(frames, 2 * frames)] * 2
    pooled = sets[0].features("lite0")["pooled"]
    assert pooled.shape == ((5, 20, 3) if len(shape) == 4 else (5, 3))
    whole = torch.cat([each.float().mean((-2, -1)) for each in sets[0].images()])
    torch.testing.assert_close(pooled, whole)
    survey(metrics, *sets)
    assert counters[0].decoded == 2 * frames  # images() above, and nothing again


def test_sets_of_other_shapes_are_refused(held):
    with pytest.raises(UserError, match="cannot be paired"):
        PSNR().compute(held(images=clips(2, 8)), held(images=clips(2, 9)))


def test_of_the_first_samples_no_more_is_decoded_than_needed():
    made = []

    def decode(latents):
        made.append(latents.shape[0] * latents.shape[2])
        return latents[:, :3].transpose(1, 2)

    latents = torch.arange(6 * 3 * 20.0).view(6, 3, 20, 1, 1)
    found = first_of(decoded(latents, decode), 4)
    assert torch.equal(found, latents[:4].transpose(1, 2))
    assert (sum(made), max(made)) == (4 * 20, FRAMES)
    assert torch.equal(first_of(decoded(latents[:, :, 0], lambda x: x), 4)[:, 0], latents[:4, :, 0])
    assert len(first_of(decoded(latents, decode), 99)) == 6


class Streamed:
    """A clip that is made frame by frame, so that only what the metrics hold is in memory."""

    n, prompts, clusters = 1, (), None

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed

    def pieces(self, extractors=()):
        for start in range(0, self.length, FRAMES):
            stop = min(start + FRAMES, self.length)
            rng = np.random.default_rng(self.seed + start)
            frames = torch.from_numpy(rng.integers(0, 256, (1, stop - start, 3, 64, 64), dtype=np.uint8))
            yield Piece(frames, start, stop == self.length)

    def missing(self, extractors):
        return []


@pytest.mark.slow
def test_a_longer_clip_takes_no_more_memory():
    """Measured in a fresh process each, by the peak of resident memory: torch's memory is not Python's."""
    script = (
        "import resource, sys; sys.path.insert(0, 'tests');"
        "from eval.test_frames import Streamed; from qdit.eval.frames import survey;"
        "from qdit.eval.paired import PSNR, SSIM; from qdit.eval import video; length = int(sys.argv[1]);"
        "metrics = [PSNR(), SSIM(), video.TemporalFlickering(), video.MotionSmoothnessBlend()];"
        "survey(metrics, Streamed(length, 0), Streamed(length, 1));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = {}
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else the allocator keeps some of what was given back
    for length in (16, 49):
        command = [sys.executable, "-c", script, str(length)]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
        peaks[length] = int(made.stdout)
    assert peaks[49] < 1.03 * peaks[16]
