"""LPIPS on random weights saved as files: the published formula, written out, and what it needs."""

import sys
from dataclasses import replace

import pytest
import torch
from helpers.clips import golden_clips
from torchvision.models import alexnet, vgg16

from qdit.errors import UserError
from qdit.eval.extractor import make_extractor
from qdit.eval.extractor.lpips import LPIPSOf
from qdit.eval.lpips import LPIPS, _loaded
from qdit.eval.samples import Drawn
from qdit.storage.weights import VARIABLE, WEIGHTS

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Weights as torchvision publishes them, and a package of heads; digests of the real files are not asked for."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    torch.manual_seed(0)
    heads = tmp_path / "site" / "lpips" / "weights" / "v0.1"
    heads.mkdir(parents=True)
    (heads.parents[1] / "__init__.py").write_text("raise ImportError('nothing of it is run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    made = {}
    for name, widths in CHANNELS.items():
        about = replace(WEIGHTS[f"lpips_{name}"], sha256_prefix=None)
        monkeypatch.setitem(WEIGHTS, f"lpips_{name}", about)
        made[name] = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(widths)}
        torch.save(made[name], heads / f"{name}.pth")
    network = alexnet(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / WEIGHTS["lpips_alex"].name)
    yield network, made["alex"]
    _loaded.cache_clear()
    sys.modules.pop("lpips", None)


def naive(network, heads, one, other):
    """The sum over five layers, one image, one layer after the other."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    layers = []
    for image in (one, other):
        x = ((image.permute(1, 2, 0) / 127.5 - 1 - shift) / scale).permute(2, 0, 1)[None]
        layers.append([x := layer(x) for layer in network.features[:12]])
    total = 0.0
    for number, tap in enumerate((1, 4, 7, 9, 11)):
        a, b = (found[tap][0] / found[tap][0].norm(dim=0, keepdim=True).clamp(min=1e-10) for found in layers)
        total += float((heads[f"lin{number}.model.1.weight"][0] * (a - b) ** 2).sum(0).mean())
    return total


def samples(images):
    return Drawn([images], lambda at: at, make_extractor)  # images that are their own latents


@torch.no_grad()
def test_the_formula_of_images_and_of_frames(brought):
    images = torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[:2, :, 10:30] = 255 - changed[:2, :, 10:30]
    found = LPIPS(net="lpips_alex").compute(samples(changed), samples(images))
    expected = [naive(*brought, a.float(), b.float()) for a, b in zip(images, changed, strict=True)]
    assert found.each is not None
    assert found.each.tolist() == pytest.approx(expected, rel=1e-4)
    assert expected[2] == 0
    assert found.value == pytest.approx(sum(expected) / 3, rel=1e-4)
    frames = torch.stack([images, images]), torch.stack([changed, images])
    assert LPIPS(net="lpips_alex").score(frames[1], frames[0])[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_both_classifiers_have_the_taps_of_their_heads():
    for make, name in ((alexnet, "lpips_alex"), (vgg16, "lpips_vgg")):
        with torch.device("meta"):
            layers = make(weights=None).features
        network = make_extractor(name)
        assert isinstance(network, LPIPSOf)
        widths = [layers[tap - 1].out_channels for tap in network.taps]
        assert tuple(widths) == CHANNELS[name.removeprefix("lpips_")]
        assert all(isinstance(layers[tap], torch.nn.ReLU) for tap in network.taps)


def test_what_is_missing_is_said_before_sampling(brought, tmp_path, monkeypatch):
    assert LPIPS(net="lpips_alex").preflight(4, None, 64) == []
    assert "of 32 px or more a side, these have 16" in LPIPS(net="lpips_alex").preflight(4, None, 16)[0]
    assert "vgg16-397923af.pth (553 MB" in LPIPS(net="lpips_vgg").preflight(4)[0]
    small = golden_clips()["noise"][:, :, :, :16]
    with pytest.raises(UserError, match="32 px"):
        LPIPS(net="lpips_alex").score(small, small)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install lpips" in LPIPS(net="lpips_alex").preflight(4)[0]
