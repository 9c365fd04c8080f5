"""qdit-score: folders that anything made, with the metrics of a run, and its complaints."""

import json

import numpy as np
import pytest
from PIL import Image

from qdit.cli import score
from qdit.eval import extractor
from qdit.eval.extractor.common import FeatureExtractor

SIDE = 16


class Tiny(FeatureExtractor):
    """Mean colours as features."""

    name = "lite0"
    sizes = {"pooled": 3, "spatial": 3, "logits": 3}  # noqa: RUF012
    weights_sha256 = "0" * 64

    def preflight(self):
        return []

    def build(self):
        import torch

        class Colours(torch.nn.Module):
            def forward(self, images):
                means = images.float().mean((2, 3)) / 255
                return {"pooled": means, "spatial": means, "logits": means}

        return Colours()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(extractor.EXTRACTORS, "lite0", Tiny)


def images(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def folder(root, name: str, made: np.ndarray, stem: str = "cat-{}"):
    where = root / name
    where.mkdir()
    for number, image in enumerate(made):
        Image.fromarray(image).save(where / f"{stem.format(number)}.png")
    return where


def clips(root, name: str, made: np.ndarray, moving: bool = False):
    where = root / name
    where.mkdir()
    for number, clip in enumerate(made):
        if moving:
            first, *rest = (Image.fromarray(frame) for frame in clip)
            first.save(where / f"clip{number}.gif", save_all=True, append_images=rest)
            continue
        (where / f"clip{number}").mkdir()
        for time, frame in enumerate(clip):
            Image.fromarray(frame).save(where / f"clip{number}" / f"{time:03d}.png")
    return where


def run(*words) -> None:
    score.main([str(word) for word in words])


def complaint(capsys, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_pairs_by_name(tmp_path, capsys):
    full = images(0, 44) // 2
    made, other = folder(tmp_path, "made", full + 2), folder(tmp_path, "full", full)
    run(made, "--against", other, "--json", tmp_path / "out.json")
    printed = capsys.readouterr().out
    assert "PSNR (dB) ↑" in printed
    assert "42.1" in printed  # 20 log10(255 / 2)
    assert "± is one standard error. 44 samples of 16×16 pixels, paired with" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["metrics"]) == set(score.PAIRED)
    assert found["metrics"]["fid_to_full_lite0"]["value"] == pytest.approx(3 * (2 / 255) ** 2, rel=1e-4)
    assert len(found["each"]["psnr"]) == 44
    assert found["each"]["psnr"]["cat-7"] == pytest.approx(20 * np.log10(255 / 2))


def test_errors_are_over_prompts(tmp_path, capsys):
    full = images(0, 6) // 2
    made = folder(tmp_path, "made", full + np.arange(6, dtype=np.uint8)[:, None, None, None])
    other = folder(tmp_path, "full", full)
    lines = [{"id": f"cat-{n}", "prompt": f"a cat {n // 2}"} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(made, "--against", other, "--prompts", tmp_path / "prompts.jsonl", "--metrics", "ssim")
    assert "± is one standard error over 3 prompts." in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("a cat\n")
    assert "1 captions and none for cat-0" in complaint(capsys, made, "--prompts", tmp_path / "short.txt")


def test_sets_of_other_names_are_no_pairs(tmp_path, capsys):
    made, real = folder(tmp_path, "made", images(0, 60)), folder(tmp_path, "real", images(1, 90), "photo{}")
    run(made, "--against", real)
    printed = capsys.readouterr().out
    assert "FID_lite0 ↓" in printed
    assert "PSNR" not in printed
    assert "against the set" in printed
    run(made)
    assert "IS_lite0" in capsys.readouterr().out
    assert "psnr: it compares pairs" in complaint(capsys, made, "--against", real, "--metrics", "psnr")


@pytest.mark.parametrize("moving", [False, True])
def test_clips(tmp_path, capsys, moving):
    """Twelve frames are two pieces; GIFs hold these few colours exactly."""
    full = (np.arange(2 * 12).reshape(2, 12, 1, 1, 1) * 8 + np.zeros((SIDE, SIDE, 3))).astype(np.uint8)
    made = full.copy()
    made[:, 5] += 4
    words = [clips(tmp_path, "made", made, moving), "--against", clips(tmp_path, "full", full, moving)]
    run(*words, *([] if moving else ["--frames"]), "--json", tmp_path / "out.json")
    streams = capsys.readouterr()
    assert "2 samples of 12 frames of 16×16 pixels" in streams.out
    assert "fid_to_full_lite0 was not computed: 2 samples are too few" in streams.err
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert found["temporal_flickering"]["value"] == pytest.approx(1 - 8 / 255)
    assert found["temporal_difference_error"]["value"] == pytest.approx(8 / 11)
    assert found["psnr_worst_frame"]["value"] == pytest.approx(20 * np.log10(255 / 4))
    assert np.argmin(found["psnr"]["by_frame"]) == 5


def test_what_does_not_fit_is_named(tmp_path, capsys):
    made, other = folder(tmp_path, "made", images(0, 4)), folder(tmp_path, "full", images(0, 4))
    (other / "cat-3.png").unlink()
    assert f"share 3 names, but {other} lacks cat-3" in complaint(capsys, made, "--against", other)
    folder(tmp_path, "wide", np.zeros((1, SIDE, 2 * SIDE, 3), np.uint8), "cat-3")
    (tmp_path / "wide" / "cat-3.png").rename(other / "cat-3.png")
    assert "cat-3.png has 32×16 pixels, and cat-0.png has 16×16 pixels" in complaint(capsys, made, "--against", other)
    (other / "cat-3.png").write_bytes((made / "cat-3.png").read_bytes()[:60])
    assert f"{other / 'cat-3.png'} cannot be read as an image" in complaint(capsys, made, "--against", other)
    (other / "clip.mp4").write_bytes(b"")
    assert "holds clips (clip.mp4) and images (cat-0.png)" in complaint(capsys, other)
    assert "is no folder" in complaint(capsys, tmp_path / "nowhere")
    assert "holds no images" in complaint(capsys, tmp_path / "wide")
    assert "--metrics nothing: no such option" in complaint(capsys, made, "--metrics", "nothing")
    assert "sqnr: a folder has no latents" in complaint(capsys, made, "--against", made, "--metrics", "sqnr", "psnr")


def test_clips_of_other_lengths_are_refused(tmp_path, capsys):
    made, full = (clips(tmp_path, name, np.zeros((2, 10, SIDE, SIDE, 3), np.uint8)) for name in ("made", "full"))
    (full / "clip1" / "009.png").unlink()
    words = (made, "--against", full, "--frames")
    assert "clip1 has 9 frames of 16×16 pixels, and clip0 has 10 frames" in complaint(capsys, *words)
    (full / "clip0" / "009.png").unlink()
    assert "images (2, 3, 16, 16) cannot be paired with (1, 3, 16, 16)" in complaint(capsys, *words)
