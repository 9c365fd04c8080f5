"""HPSv2.1, PickScore and the CLIP of CMMD on random weights of the right layout, saved as files."""

import pytest
import torch
import torch.nn.functional as F
from helpers.clips import save_small_clip
from PIL import Image

from qdit.errors import UserError
from qdit.eval.extractor import make_extractor, preference
from qdit.eval.extractor.resizing import CLIP, centre, for_clip, for_hps, normalised, resized, short_side
from qdit.eval.image_files import Images
from qdit.eval.make_reference import build, floor
from qdit.eval.preflight import prepare
from qdit.eval.reference import load
from qdit.eval.samples import Drawn
from qdit.eval.text import LearnedAlignment, TextAlignment
from qdit.storage.weights import VARIABLE, WEIGHTS

PICTURES = torch.randint(0, 256, (4, 3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "a dog on a mat", "rain", "a cat"]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def samples(prompts=()):
    return Drawn([PICTURES], lambda x: x, lambda name: make_extractor(name), prompts=prompts)


def small_architecture(open_clip):
    about = open_clip.get_model_config("ViT-H-14")
    about["vision_cfg"] |= {"layers": 1, "width": 32, "head_width": 16, "patch_size": 32}
    about["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    return about | {"embed_dim": 16}


def test_hps_is_open_clips_network_with_the_weights_of_the_file(weights, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    about = small_architecture(open_clip)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: about if name == preference.ARCHITECTURE else None)
    torch.manual_seed(1)
    model = open_clip.model.CLIP(**about).eval()
    torch.save({"epoch": 0, "state_dict": model.state_dict()}, weights / WEIGHTS["hps_v21"].name)
    own = samples(PROMPTS)
    found = TextAlignment(extractor="hps_v21", scale=100.0).each(own, own)
    with torch.no_grad():
        images = model.encode_image(for_hps(PICTURES), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(PROMPTS), normalize=True)
    assert found.tolist() == pytest.approx((100 * (images * texts).sum(1)).tolist(), abs=1e-4)
    torch.save({"state_dict": {"logit_scale": torch.tensor(1.0)}}, weights / WEIGHTS["hps_v21"].name)
    with pytest.raises(UserError, match="is of another network: positional_embedding is missing"):
        make_extractor("hps_v21").load()


def test_the_layout_of_hps_has_the_shapes_of_vit_h():
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        state = open_clip.model.CLIP(**open_clip.get_model_config(preference.ARCHITECTURE)).state_dict()
    assert sum(value.numel() for value in state.values()) == 986_109_441
    assert tuple(state["visual.proj"].shape) == (1280, 1024) == (1280, preference.HPS.sizes["pooled"])


def test_hps_sees_squares_as_clip_does_but_for_rounding():
    square = torch.full((1, 3, 300, 300), 77, dtype=torch.uint8)
    torch.testing.assert_close(for_hps(square), for_clip(square))
    assert for_hps(PICTURES).shape == (4, 3, 224, 224)
    assert for_hps(PICTURES).max() > 2.2  # bicubic overshoots, and is not clamped


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (480, 854)])
def test_hps_sees_the_whole_of_a_wide_or_a_tall_image_between_black_bars(height, width):
    """As `ResizeMaxSize` of hpsv2, by torchvision."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    scale = 224 / float(max(height, width))
    size = tuple(round(length * scale) for length in (height, width))
    bicubic = functional.InterpolationMode.BICUBIC
    whole = functional.resize(images / 255, list(size), bicubic, antialias=True)
    down, right = 224 - size[0], 224 - size[1]
    square = functional.pad(whole, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    torch.testing.assert_close(for_hps(images), functional.normalize(square, mean, deviation), atol=1e-5, rtol=1e-5)


def test_squares_are_seen_by_hps_as_they_were():
    square = PICTURES[..., :60]
    whole = resized(square.float(), short_side(60, 60, 224), "bicubic", antialias=True)
    assert torch.equal(for_hps(square), normalised(centre(whole, 224) / 255, CLIP))


def test_pick_score_has_the_factor_that_it_learned(weights):
    pytest.importorskip("transformers")
    from transformers import CLIPModel

    folder = weights / WEIGHTS["pick_score"].name
    save_small_clip(folder)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    own = samples(PROMPTS)
    found = LearnedAlignment(extractor="pick_score").compute(own, own)
    extractor = make_extractor("pick_score")
    images = F.normalize(extractor(PICTURES)["pooled"], dim=1)
    texts = F.normalize(extractor.texts(PROMPTS), dim=1)
    expected = 2.718281828**3 * (images * texts).sum(1)
    assert found.each.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_references_and_floors_of_a_network_without_spatial_features(weights, tmp_path):
    pytest.importorskip("transformers")
    save_small_clip(weights / WEIGHTS["clip_l14_336"].name, 336)
    extractor = make_extractor("clip_l14_336")
    extractor.sizes = {"pooled": 16}
    folder = tmp_path / "images"
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    made = build(Images(folder), "toy", extractor)
    assert (made.mu_s, made.pooled.shape) == (None, (4, 16))
    torch.testing.assert_close(made.pooled, extractor(PICTURES)["pooled"])
    scores = floor(Images(folder), made, extractor, [3], 2, 0)["3"]
    assert set(scores) == {"fid_clip_l14_336", "kid_clip_l14_336", "cmmd"}
    made.save(tmp_path / "toy.safetensors")
    with pytest.raises(UserError, match=r"\(768,\)"):
        load(tmp_path / "toy.safetensors")  # the real one is as wide
    with pytest.raises(UserError, match="raft has no pooled features"):
        build(Images(folder), "toy", make_extractor("raft"))


def test_what_is_missing_is_named_before_sampling(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    metrics = {
        "hps_v21": TextAlignment(extractor="hps_v21"),
        "pick_score": LearnedAlignment(extractor="pick_score"),
    }
    with pytest.raises(UserError) as caught:
        prepare(metrics, n=8, dataset="none", cache_dir=tmp_path, image_size=64)
    said = str(caught.value)
    for name in metrics:
        assert (
            f"{WEIGHTS[name].name} ({WEIGHTS[name].size}, {WEIGHTS[name].licence}; both second-hand) not found" in said
        )
        assert str(weights / WEIGHTS[name].name) in said
    assert "hps_v21 needs open_clip: pip install open_clip_torch" in said
