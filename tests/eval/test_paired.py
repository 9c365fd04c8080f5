"""SQNR, latent MSE, PSNR, SSIM (evaluation dossier T34)."""

import math
import weakref

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from qdit.errors import UserError
from qdit.eval.frames import survey
from qdit.eval.paired import PSNR, SQNR, SSIM, LatentMSE, psnr, sqnr, ssim
from qdit.eval.preflight import prepare
from qdit.eval.samples import SampleSet
from qdit.storage.shelf import Shelf


def latents(n: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def pictures(n: int = 10, seed: int = 0, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_identical_samples(held):
    same = held(latents=latents(10), images=pictures())
    other = held(latents=latents(10), images=pictures())
    values = {m.__name__: m().compute(same, other).value for m in (SQNR, LatentMSE, PSNR, SSIM)}
    assert values == {"SQNR": 120, "LatentMSE": 0, "PSNR": 120, "SSIM": pytest.approx(1, abs=1e-12)}


def test_known_noise(held):
    full, sigma = latents(64), 0.05
    noisy = full + sigma * latents(64, 1)
    result = SQNR().compute(held(latents=noisy), held(latents=full))
    assert result.value == pytest.approx(-20 * math.log10(sigma), abs=0.2)
    each = sqnr(full, noisy)
    assert result.stderr == pytest.approx(float(each.std()) / 8)
    assert (result.n, result.delta, result.higher_is_better) == (64, None, True)
    assert LatentMSE().compute(held(latents=noisy), held(latents=full)).value == pytest.approx(sigma**2, rel=0.05)


def test_signal_is_full_precision(held):
    """SQNR divides full precision's power by the error's, not the other way about."""
    full = latents(4)
    assert SQNR().compute(held(latents=0 * full), held(latents=full)).value == pytest.approx(0)
    assert SQNR().compute(held(latents=full), held(latents=0 * full)).value == -120


def test_mean_of_decibels_is_not_decibels_of_the_mean():
    full = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    test = full + torch.tensor([1, 50], dtype=torch.uint8).view(2, 1, 1, 1)
    expected = [20 * math.log10(255 / 1), 20 * math.log10(255 / 50)]
    assert psnr(full, test).tolist() == pytest.approx(expected)


def test_ssim_equals_scipy():
    """Wang et al.'s formula by scipy's Gaussian filter of the same window, away from the border."""
    x, y = pictures(2, 0), pictures(2, 1)
    y = (0.7 * x.float() + 0.3 * y.float()).to(torch.uint8)
    found = ssim(x, y)

    def blur(channel):
        return gaussian_filter(channel, 1.5, truncate=5 / 1.5, mode="reflect")[5:-5, 5:-5]

    for i in range(2):
        scores = []
        for c in range(3):
            a, b = (t[i, c].numpy().astype(np.float64) / 255 for t in (x, y))
            ma, mb = blur(a), blur(b)
            va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
            luminance = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
            scores.append((luminance * (2 * cov + 9e-4) / (va + vb + 9e-4)).mean())
        assert float(found[i]) == pytest.approx(np.mean(scores), abs=1e-10)
    assert 0.3 < float(found[0]) < 0.99


def test_chunks_do_not_matter(held):
    x, y = pictures(10, 0), pictures(10, 1)
    values = {SSIM().compute(held(images=y, chunk=c), held(images=x, chunk=c)).value for c in (10, 10)}
    values |= {SSIM().compute(held(images=y, chunk=3), held(images=x, chunk=3)).value}
    assert max(values) - min(values) < 1e-12


def test_refuses_what_cannot_be_paired(held):
    with pytest.raises(UserError, match="15 samples cannot be paired with 16"):
        SQNR().compute(held(latents=latents(15)), held(latents=latents(16)))
    with pytest.raises(UserError, match="cannot be paired"):
        SQNR().compute(held(latents=latents(4)[:, :3]), held(latents=latents(4)))
    with pytest.raises(UserError, match="cannot be paired"):
        PSNR().compute(held(images=pictures(4, side=16)), held(images=pictures(4)))
    broken = latents(4)
    broken[2, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="quantized latent of sample 2"):
        SQNR().compute(held(latents=broken), held(latents=latents(4)))
    with pytest.raises(UserError, match="at least 11"):
        SSIM().compute(held(images=pictures(4, side=8)), held(images=pictures(4, side=8)))


def test_images_are_decoded_once_for_both_metrics(held):
    """And their values are forgotten with the sets."""
    passes = []

    class Counted(held):
        def images(self):
            passes.append(self)
            return super().images()

    full, made = Counted(images=pictures(10, 0)), Counted(images=pictures(10, 1))
    survey([PSNR(), SSIM()], made, full)
    first, second = PSNR().compute(made, full), SSIM().compute(made, full)
    assert passes == [full, made]
    other = Counted(images=pictures(10, 2))
    assert PSNR().compute(other, full).value != first.value
    assert (PSNR().compute(made, full), SSIM().compute(made, full)) == (first, second)
    assert passes == [full, made, full, other]
    watched = weakref.ref(made)
    passes.clear()
    del made
    assert watched() is None


def test_sample_sets_can_be_remembered(tmp_path):
    made = SampleSet(
        Shelf(tmp_path), 4, 2, lambda i: torch.zeros(2, 4, 8, 8), lambda x: pictures(2), lambda name: lambda x: {}
    )
    assert PSNR().compute(made, made).value == 120


def test_image_size_is_seen_before_sampling(tmp_path):
    assert SSIM().preflight(4) == SSIM().preflight(4, None, 11) == PSNR().preflight(4, None, 8) == []
    with pytest.raises(UserError, match=r"eval.ssim: SSIM needs images of at least 11 px, these have 8"):
        prepare({"psnr": PSNR(), "ssim": SSIM()}, n=4, dataset="emoji", cache_dir=tmp_path, image_size=8)


def test_small_images_still_have_a_psnr(held):
    assert PSNR().compute(held(images=pictures(4, 0, 8)), held(images=pictures(4, 0, 8))).value == 120


def test_one_sample_has_no_standard_error(held):
    assert SQNR().compute(held(latents=latents(1, 1)), held(latents=latents(1))).stderr is None
