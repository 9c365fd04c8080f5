"""Networks whose weights the user brings: loading, preprocessing and use, on random weights saved as files."""

import pytest
import torch
import torch.nn.functional as F
from helpers.clips import golden_clips, save_small_clip

from qdit.errors import UserError
from qdit.eval.extractor import EXTRACTORS, dino, make_extractor, raft
from qdit.eval.extractor.i3d import I3D
from qdit.eval.extractor.musiq import Quality
from qdit.eval.extractor.resizing import for_clip, for_clip_in_vbench, for_dino
from qdit.eval.flow import DynamicDegree, FlowScore, WarpingError, dynamic, threshold, wanted_steps
from qdit.eval.preflight import prepare
from qdit.eval.samples import Drawn
from qdit.eval.text import Aesthetic, FrameSimilarity, ImagingQuality, TextAlignment
from qdit.eval.to_full import FIDToFull
from qdit.eval.video import FrameConsistency, frame_consistency
from qdit.storage.weights import VARIABLE, WEIGHTS, brought_digest

CLIPS = golden_clips()
SUBJECT = {
    "const": 1,
    "blink": 0.2142857,
    "fade": 0.7589471,
    "ramp": 0.8167431,
    "square": 0.9754651,
    "noise": 0.8230956,
}
BACKGROUND = {
    "const": 1,
    "blink": 0.2142857,
    "fade": 0.7602662,
    "ramp": 0.8151563,
    "square": 0.9765333,
    "noise": 0.6991597,
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_seen_as_vbench_sees_them(name):
    """Golden values of the released code, with pooled pixels in the place of the networks."""
    for see, golden in ((for_dino, SUBJECT), (for_clip_in_vbench, BACKGROUND)):
        pooled = F.adaptive_avg_pool2d(see(CLIPS[name][0]), 4).flatten(1)
        assert float(frame_consistency(pooled[None])[0]) == pytest.approx(golden[name], abs=2e-6)


def test_clips_count_once_where_the_released_code_counts_frames():
    """Golden values of eight frames of a square and three of noise: .943320 over all frames, .903139 over clips."""
    clips = (CLIPS["square"][0], CLIPS["noise"][0, :3])
    pooled = [F.adaptive_avg_pool2d(for_dino(clip), 4).flatten(1)[None] for clip in clips]
    each = torch.cat([frame_consistency(features) for features in pooled])
    assert float(each.mean()) == pytest.approx(0.903139, abs=2e-6)
    assert float((each * torch.tensor([7, 2])).sum() / 9) == pytest.approx(0.943320, abs=2e-6)


def test_flavours_of_clip_differ():
    noise = CLIPS["noise"][0]
    released, own = for_clip_in_vbench(noise), for_clip(noise)
    assert released.max() > 2.5  # bicubic overshoots, and is not clamped; a legal pixel ends at 2.15
    assert own.max() < 2.2
    assert (released.shape, own.shape) == ((8, 3, 224, 224), (8, 3, 224, 224))
    assert for_dino(noise).shape == (8, 3, 224, 336)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weight files, where they are looked for."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


class Clips(Drawn):
    """Clips that are their own latents."""

    def pieces(self, extractors=()):
        from qdit.eval.pieces import Collected, cut

        found = {name: Collected(self.extract(name)) for name in extractors}
        for piece in cut([self.decode(chunk) for chunk in self.chunks]):
            for each in found.values():
                each.read(piece)
            yield piece
        self._features |= {name: each.finish() for name, each in found.items()}


def samples(clips: torch.Tensor, prompts=()) -> Clips:
    loaded = {name: make_extractor(name) for name in EXTRACTORS}
    return Clips([torch.arange(len(clips))], lambda at: clips[at], loaded.__getitem__, prompts)


def test_dino(weights, monkeypatch):
    import timm

    monkeypatch.setattr(dino, "MODEL", "vit_tiny_patch16_224")  # of the same code
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(network.state_dict(), weights / WEIGHTS["dino"].name)
    own = make_extractor("dino")
    square = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()(for_dino(square))
    torch.testing.assert_close(own(square)["pooled"], expected)
    wide = samples(CLIPS["ramp"])
    assert 0 < FrameConsistency(extractor="dino").compute(wide, wide).value <= 1
    assert own(torch.zeros(1, 3, 480, 854, dtype=torch.uint8))["pooled"].shape == (1, 192)  # 224×398: cropped to 384
    torch.save({"other": torch.zeros(3)}, weights / WEIGHTS["dino"].name)
    with pytest.raises(UserError, match="of another network: cls_token is missing"):
        make_extractor("dino")(square)


@pytest.fixture
def clip(weights):
    """Small CLIPs as transformers saves them, with a tokenizer of letters."""
    for key in ("clip_b32", "clip_l14"):
        save_small_clip(weights / WEIGHTS[key].name)
    return weights


def test_clip(clip, caplog):
    both = torch.cat([CLIPS["ramp"], CLIPS["noise"]])
    own = samples(both, ["a ramp", "some noise"])
    score = TextAlignment(extractor="clip_b32", scale=100.0, floor=True)
    values = score.each(own, own)
    extractor = make_extractor("clip_b32")
    images = F.normalize(extractor(both.flatten(0, 1))["pooled"], dim=1).view(2, 8, -1)
    texts = F.normalize(extractor.texts(["a ramp", "some noise"]), dim=1)
    naive = [100 * sum(max(0.0, float(z @ texts[n])) for z in images[n]) / 8 for n in (0, 1)]
    assert values.tolist() == pytest.approx(naive, abs=1e-4)
    swapped = samples(both, ["some noise", "a ramp"])
    assert TextAlignment(extractor="clip_b32").compute(swapped, own).delta != 0
    assert FrameSimilarity(extractor="clip_b32_evalcrafter").compute(own, own).value <= 1
    assert FrameConsistency(extractor="clip_b32_vbench").compute(own, own).value <= 1
    make_extractor("clip_b32").texts(["word " * 30])
    assert "1 of 1 prompts are longer than CLIP's 77 tokens" in caplog.text
    with pytest.raises(UserError, match="no prompts are known"):
        score.compute(s := samples(both), s)


def test_aesthetic_head(clip):
    own = samples(CLIPS["noise"])
    head = torch.nn.Linear(16, 1)
    torch.save(head.state_dict(), clip / WEIGHTS["laion_head"].name)
    z = F.normalize(make_extractor("clip_l14_vbench")(CLIPS["noise"][0])["pooled"], dim=1)
    expected = float(head(z).mean().detach()) / 10
    assert Aesthetic(extractor="clip_l14_vbench").compute(own, own).value == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def published():
    """A RAFT of random weights under the published names, which are the inverse of the map."""
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    state = raft_large(weights=None).state_dict()
    names = published_names(list(state))
    assert {raft.torchvision_name(old): old for old in names.values()}.keys() == state.keys()
    return {f"module.{names[name]}": value for name, value in state.items()}


def published_names(names):
    """What princeton-vl's code calls the parameters of torchvision's network, written out apart from the map."""
    found = {}
    for name in names:
        old = name.replace("feature_encoder", "fnet").replace("context_encoder", "cnet")
        for k in ("1", "2"):
            old = old.replace(f"convnormrelu{k}.0", f"conv{k}").replace(f"convnormrelu{k}.1", f"norm{k}")
        old = old.replace("convnormrelu.0", "conv1").replace("convnormrelu.1", "norm1")
        if old.startswith(("fnet.conv.", "cnet.conv.")):
            old = old.replace(".conv.", ".conv2.")
        old = old.replace("downsample.1", "norm3") if "downsample.1" in old else old
        if "motion_encoder" in old:
            for theirs, ours in (("convcorr", "convc"), ("convflow", "convf")):
                for k in ("1", "2"):
                    old = old.replace(f"motion_encoder.{theirs}{k}.0", f"encoder.{ours}{k}")
            old = old.replace("motion_encoder.conv.0", "encoder.conv")
        for k in ("1", "2"):
            for gate in "zrq":
                old = old.replace(f"recurrent_block.convgru{k}.conv{gate}", f"gru.conv{gate}{k}")
        old = old.replace("mask_predictor.convrelu.0", "update_block.mask.0").replace(
            "mask_predictor.conv.", "update_block.mask.2."
        )
        found[name] = old
    return found


def test_raft_loads_strictly_and_runs(weights, published):
    torch.save(published, weights / WEIGHTS["raft"].name)
    frames = torch.randint(0, 256, (1, 3, 3, 128, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own = samples(frames)
    features = own.features("raft")
    assert {name: tuple(values.shape) for name, values in features.items()} == dict.fromkeys(features, (1, 2))
    assert float(features["side"][0, 0]) == 128
    assert bool((features["top2"] >= features["top5"]).all())
    result = FlowScore(extractor="raft").compute(own, own)
    assert result.value == pytest.approx(float(features["mean"].mean()))
    assert DynamicDegree(extractor="raft").compute(own, own).value in (0, 1)
    with pytest.raises(UserError, match="frames of 128 px or more a side, these have 64"):
        FlowScore(extractor="raft").compute(s := samples(frames[..., :64, :]), s)
    assert DynamicDegree(extractor="raft").preflight(4, None, 64) == [raft.too_small(64)]


def test_frames_that_move_as_the_flow_says_have_no_warping_error(weights, published, monkeypatch):
    torch.save(published, weights / WEIGHTS["raft"].name)
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (3, 128, 136), dtype=torch.uint8, generator=generator)
    clip = torch.stack([still, still.roll(3, 2), still.roll(5, 2)])[None]  # moves right by 3, then by 2

    def flow(self, first, second):
        there = next(step for step in (3, 2, -3, -2) if torch.equal(first[0].roll(step, 2), second[0]))
        return torch.tensor([float(there), 0.0]).view(1, 2, 1, 1).expand(1, 2, *first.shape[-2:]).clone()

    monkeypatch.setattr(
        raft.Flow,
        "flow",
        lambda self, a, b: torch.cat([flow(self, x[None], y[None]) for x, y in zip(a, b, strict=True)]),
    )
    wrong = raft.warped(clip[0, 1:2].float(), torch.zeros(1, 2, 128, 136)) - clip[0, 0].float()
    errors = samples(clip).features("raft_warp")["error"][0]
    assert errors.shape == (2,)
    assert float(errors.max()) < 0.05 * float((wrong / 255).square().mean())  # of the columns that left the frame alone
    own = samples(clip)
    assert WarpingError(extractor="raft_warp").compute(own, own).value == pytest.approx(float(errors.mean()))


def test_a_clip_of_which_nothing_is_seen_twice_is_not_perfect(monkeypatch):
    nowhere = torch.full((1, 2, 128, 128), 6.0)  # there and back alike
    monkeypatch.setattr(raft.Flow, "flow", lambda self, a, b: nowhere)
    clip = torch.randint(0, 256, (1, 2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    error = raft.Warp(torch.nn.Identity())(clip)["error"]
    assert 0.1 < float(error) < 0.25  # of independent pixels 1/6


def test_points_that_only_one_frame_shows_are_not_counted():
    there, back = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    there[:, 0, 2:4], back[:, 0, 2:4] = 1.0, -1.0
    assert bool(raft.visible(there, back).all())
    back[:, 0, 2] = 1.0  # returns nowhere near
    assert raft.visible(there, back)[0, 0].min(1)[0].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


def test_golden_values_of_flow():
    """u = 2 in rows 12 … 19, columns 4 … 11 of 32×48: 5 % are 76 pixels, 64 of them moving; 2 % are 30."""
    magnitude = torch.zeros(1, 32, 48)
    magnitude[:, 12:20, 4:12] = 2
    assert float(raft.largest(magnitude, 0.05)) == pytest.approx(1.6842105)
    assert float(raft.largest(magnitude, 0.02)) == 2
    moving = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    sides = {32: 0.75, 256: 6, 480: 11.25, 512: 12, 720: 16.875}
    assert {side: threshold(side) for side in sides} == sides
    assert [wanted_steps(frames) for frames in (2, 8, 16, 49)] == [0, 2, 4, 12]
    assert dynamic(moving, 32).tolist() == [True, False]  # of 8 frames two steps are wanted; the threshold is .75
    assert dynamic(moving, 43).tolist() == [False, False]
    with pytest.raises(UserError, match="three frames or more"):
        dynamic(moving[:, :1], 32)


def test_musiq_needs_its_library_and_its_file(weights):
    found = ImagingQuality(extractor="musiq").preflight(4)
    assert "musiq_spaq_ckpt-358bb6af.pth (about 109 MB" in found[0]
    (weights / WEIGHTS["musiq"].name).write_bytes(b"another file")
    assert "has sha256" in ImagingQuality(extractor="musiq").preflight(4)[0]
    seen = []

    class Mean(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[-2:]))
            return x.mean((1, 2, 3)) * 100

    values = Quality(Mean())(torch.full((2, 3, 480, 720), 51, dtype=torch.uint8))["score"]
    assert (seen, values.flatten().tolist()) == ([(341, 512)], pytest.approx([20, 20]))


def test_fvd_reads_whole_clips(weights):
    class Mean(torch.nn.Module):
        """As the released script: by default pixels of 0 … 255 of any size are expected, and probabilities come out."""

        def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
            if rescale:
                x = 2 * x / 255 - 1
            if resize:
                x = x[..., :1, :1]
            means = x.mean((3, 4)).flatten(1)
            return means if return_features else means.softmax(1)

    torch.jit.script(Mean()).save(str(weights / WEIGHTS["i3d"].name))
    clips = torch.randint(0, 256, (40, 10, 3, 4, 4), dtype=torch.uint8)
    own = samples(clips)
    found = own.features("i3d")["pooled"]
    assert found.shape == (40, 1, 30)
    expected = (2 * clips.float() / 255 - 1).mean((3, 4)).transpose(1, 2).flatten(1)[:, None]
    assert torch.allclose(found, expected, atol=1e-5)  # rescaled once, and no probabilities
    assert FIDToFull(extractor="i3d").compute(own, samples(clips)).value == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="I3D needs clips of 10 frames or more, these have 8"):
        samples(clips[:2, :8]).features("i3d")
    (weights / WEIGHTS["i3d"].name).write_bytes(b"no archive")
    with pytest.raises(UserError, match="is no TorchScript file"):
        make_extractor("i3d").load()
    torch.jit.script(torch.nn.Identity()).save(str(weights / WEIGHTS["i3d"].name))
    with pytest.raises(UserError, match="is another TorchScript: it does not take rescale, resize, return_features"):
        make_extractor("i3d").load()
    assert I3D.window is None


def test_everything_that_is_missing_is_said_at_once(weights, tmp_path):
    metrics = {
        "subject_consistency": FrameConsistency(extractor="dino"),
        "background_consistency": FrameConsistency(extractor="clip_b32_vbench"),
        "aesthetic_quality": Aesthetic(extractor="clip_l14_vbench"),
        "dynamic_degree": DynamicDegree(extractor="raft"),
    }
    with pytest.raises(UserError) as caught:
        prepare(metrics, n=8, dataset="none", cache_dir=tmp_path, image_size=64)
    said = str(caught.value)
    for name in ("dino", "clip_b32", "clip_l14", "laion_head", "raft"):
        assert (
            f"{WEIGHTS[name].name} ({WEIGHTS[name].size}, {WEIGHTS[name].licence}; both second-hand) not found" in said
        )
        assert str(weights / WEIGHTS[name].name) in said
    assert "optical flow by RAFT needs frames of 128 px" in said


def test_settings_hold_the_digest_of_a_file_that_the_user_brings(weights, tmp_path):
    from qdit.runs.identity import settings

    node = {"_target_": "qdit.eval.flow.FlowScore", "extractor": "raft", "weights": None}
    found = [settings(node, "prompts", tmp_path)]
    for content in (b"one", b"others"):
        (weights / WEIGHTS["raft"].name).write_bytes(content)
        found.append(settings(node, "prompts", tmp_path))
    assert len(set(found)) == 3


def test_of_a_folder_only_what_is_read_is_its_digest(tmp_path):
    """Repositories hold the same weights in several forms; one may be there or not."""
    for name in ("config.json", "model.safetensors", "vocab.json", "merges.txt"):
        (tmp_path / name).write_text(name)
    before = brought_digest(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("the same in another form")
    assert brought_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("other weights")
    assert brought_digest(tmp_path) != before
