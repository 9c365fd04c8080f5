"""Extractors: what they refuse, what comes out, and the order of the spatial features (dossier T19, T22-T28, T36)."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as port
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1_resize

from qdit.assets import ASSETS
from qdit.errors import UserError
from qdit.eval.extractor import make_extractor
from qdit.eval.extractor.common import channels_last, check_images
from qdit.eval.extractor.inception import FILE, ADMInception, Inception, MissingWeights
from qdit.eval.extractor.lite0 import Lite0, load_in_order
from qdit.nn.outputs import outputs_of


def pictures(n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lite0():
    extractor = make_extractor("lite0")
    extractor.load("cpu")
    return extractor


@pytest.fixture(scope="module")
def inception():
    """The real architecture with random weights: loading is switched off, and the initial values stay."""
    extractor = make_extractor("inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        extractor.network = ADMInception({})
    return extractor


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 3, 8, 8) * 2 - 1,
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["0..1", "-1..1", "int64", "channels last", "gray", "no batch"],
)
def test_refuses_what_is_not_uint8_rgb(images, lite0):
    with pytest.raises(UserError, match="must be"):
        check_images(images)
    with pytest.raises(UserError, match="must be"):
        lite0(images)


@pytest.mark.parametrize("name", ["lite0", "inception"])
def test_shapes_batches_modes_and_colours(name, request):
    extractor = request.getfixturevalue(name)
    images = pictures(3)
    features = extractor(images)
    assert {kind: tuple(x.shape) for kind, x in features.items()} == {k: (3, v) for k, v in extractor.sizes.items()}
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in features.values())
    one_by_one = [extractor(images[i : i + 1]) for i in range(3)]
    extractor.network.train()
    with torch.autocast("cpu", torch.bfloat16):
        again = extractor(images)
    swapped = extractor(images.flip(1))
    for kind, x in features.items():
        scale = float(x.abs().max())
        torch.testing.assert_close(torch.cat([f[kind] for f in one_by_one]), x, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(again[kind], x, rtol=0, atol=0)
        assert not torch.allclose(swapped[kind], x, rtol=0, atol=1e-3 * scale)


def test_train_mode_would_change_features(lite0):
    """So that the check above can fail."""
    images = pictures(3)
    right = lite0(images)["pooled"]
    state = {k: v.clone() for k, v in lite0.network.state_dict().items()}
    with torch.inference_mode():
        wrong = lite0.network.train()(images)["pooled"]
    lite0.network.load_state_dict(state)
    assert not torch.allclose(wrong, right, atol=1e-2)
    torch.testing.assert_close(lite0(images)["pooled"], right)


def test_channels_last_index():
    activation = torch.randn(2, 9, 4, 5)
    flat = channels_last(activation)
    assert flat.shape == (2, 4 * 5 * 7)
    for h, w, c in [(0, 0, 0), (1, 3, 6), (3, 4, 2)]:
        assert torch.equal(flat[:, (h * 5 + w) * 7 + c], activation[:, c, h, w])
    assert not torch.equal(flat, activation[:, :7].flatten(1))


@pytest.mark.parametrize(("name", "layer", "side"), [("inception", "Mixed_6d.branch1x1", 17), ("lite0", "blocks.4", 8)])
def test_spatial_features_are_the_hooked_layer(name, layer, side, request):
    extractor = request.getfixturevalue(name)
    network = extractor.network.network
    with outputs_of({layer: network.get_submodule(layer)}) as seen:
        spatial = extractor(pictures(2))["spatial"].view(2, side, side, 7)
    assert torch.equal(spatial, seen[layer][:, :7].permute(0, 2, 3, 1))
    assert not torch.equal(spatial.flatten(1), seen[layer][:, :7].flatten(1))
    assert not network.get_submodule(layer)._forward_hooks
    if name == "inception":
        assert float(spatial.min()) >= 0  # after the ReLU


def test_inception_logits_have_no_bias(inception):
    features = inception(pictures(2))
    weight = inception.network.network.fc.weight
    torch.testing.assert_close(features["logits"], features["pooled"] @ weight.T, rtol=1e-5, atol=1e-5)


def test_lite0_is_timms_network_at_128_px(lite0):
    images = pictures(2)
    x = nn.functional.interpolate(images.float(), (128, 128), mode="bilinear")
    found = lite0(images)["logits"]  # first: it puts the network into evaluation mode
    with torch.inference_mode():
        expected = lite0.network.network((x - 127) / 128)
    assert torch.equal(found, expected)


def test_lite0_recognises_emoji(lite0):
    """Tensors in a wrong order, or pixels on a wrong scale, would not name four ImageNet classes from 32 px."""
    shipped = np.load(ASSETS / "emoji" / "emoji32.npz", allow_pickle=False)
    names = [str(name).lower() for name in shipped["names"]]
    classes = {"strawberry": 949, "pineapple": 953, "umbrella": 879, "soccer ball": 805}
    images = torch.from_numpy(shipped["images"][[names.index(name) for name in classes]]).permute(0, 3, 1, 2)
    assert lite0(images)["logits"].argmax(1).tolist() == list(classes.values())


def test_lite0_refuses_other_weights(tmp_path):
    (tmp_path / "other.pth").write_bytes(b"other")
    assert "not 57934424" in Lite0(weights=str(tmp_path / "other.pth")).preflight()[0]
    assert "not found" in Lite0(weights=str(tmp_path / "none.pth")).preflight()[0]


def test_load_in_order_checks_number_and_shapes(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    good = {f"old.{i}": torch.full_like(v, i) for i, v in enumerate(network.state_dict().values())}
    load_in_order(network, good, tmp_path)
    assert [float(v.flatten()[0]) for v in network.state_dict().values()] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="3 tensors"):
        load_in_order(network, dict(list(good.items())[:3]), tmp_path)
    with pytest.raises(UserError, match=r"old\.0 is \(5,\)"):
        load_in_order(network, good | {"old.0": torch.zeros(5)}, tmp_path)


def test_tf1_resize_has_no_half_pixel_centres():
    image = torch.tensor([[0.0, 4.0], [8.0, 12.0]]).view(1, 1, 2, 2)
    row = torch.tensor([0.0, 2.0, 4.0, 4.0])
    expected = torch.stack([row, row + 4, row + 8, row + 8])
    assert torch.equal(tf1_resize(image, size=(4, 4), align_corners=False)[0, 0], expected)


def test_contract_with_torch_fidelity():
    """The names of torch-fidelity 0.4 that we lean on."""
    assert port.URL_INCEPTION_V3.endswith(FILE)
    assert callable(port.load_state_dict_from_url)
    assert {"2048", "logits_unbiased"} <= set(port.FeatureExtractorInceptionV3.get_provided_features_list())


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("QDIT_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded without leave"))
    return tmp_path


def test_missing_weights_names_places_and_ways_out(nowhere):
    (message,) = Inception().preflight()
    for part in ("MissingWeights", "QDIT_INCEPTION_WEIGHTS", FILE, "https://", "eval=paired", "allow_download=true"):
        assert part in message
    assert str(nowhere / "torch") in message
    with pytest.raises(MissingWeights):
        Inception()(pictures(1))


def test_a_named_file_is_final_and_its_digest_is_checked(nowhere, monkeypatch):
    hub = nowhere / "torch" / "hub" / "checkpoints" / FILE
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"other weights")
    prefix = hashlib.sha256(b"other weights").hexdigest()[:8]
    assert f"has sha256 {prefix}, not 6726825d" in Inception().preflight()[0]
    monkeypatch.setattr("qdit.eval.extractor.inception.SHA256_PREFIX", prefix)
    assert Inception().preflight() == []
    assert "not found" in Inception(weights=str(nowhere / "gone.pth")).preflight()[0]
    monkeypatch.setenv("QDIT_INCEPTION_WEIGHTS", str(nowhere / "gone.pth"))
    assert "gone.pth" in Inception(allow_download=True).preflight()[0]


def test_download_only_with_leave(nowhere, monkeypatch):
    calls = []

    def no_network(url, target, **options):
        calls.append((url, target, options))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    extractor = Inception(allow_download=True)
    assert extractor.preflight() == []
    with pytest.raises(MissingWeights, match="no network"):
        extractor.load()
    assert calls[0][0] == port.URL_INCEPTION_V3
    assert calls[0][2]["hash_prefix"] == "6726825d"


def test_weights_are_never_unpickled(nowhere, monkeypatch):
    """A file with code inside is refused by torch, even where its digest is accepted."""

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    path = nowhere / "bomb.pth"
    torch.save({"x": Bomb()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("qdit.eval.extractor.inception.SHA256_PREFIX", digest)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        Inception(weights=str(path)).load()


def test_unknown_extractor():
    with pytest.raises(UserError, match="lite0, inception"):
        make_extractor("vgg16")
