"""qdit-score: folders that anything made, with the metrics of a run, and its complaints."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import commands
from helpers.tiny import Colours
from PIL import Image

from qdit.cli import score
from qdit.eval import extractor
from qdit.eval.folders import Folder
from qdit.eval.per_sample import PerSample

SIDE = 16


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(extractor.EXTRACTORS, "lite0", Colours)


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
    assert score.main([str(word) for word in words]) == 0


def complaint(capsys, *words) -> str:
    return commands.complaint(capsys, score.main, *words)


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
    printed = capsys.readouterr().out
    assert "± is one standard error over 3 prompts." in printed
    assert "without an error" not in printed
    (tmp_path / "short.jsonl").write_text(json.dumps(lines[1]))
    words = (made, "--prompts", tmp_path / "short.jsonl", "--metrics", "is_lite0")
    assert "1 captions and none for cat-0 (5 of 6 samples)" in complaint(capsys, *words)


def test_what_has_no_error_of_few_prompts_is_named(tmp_path, capsys):
    made, other = folder(tmp_path, "made", images(0, 44)), folder(tmp_path, "full", images(1, 44))
    lines = [{"id": f"cat-{n}", "prompt": f"a cat {n % 3}"} for n in range(44)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(made, "--against", other, "--prompts", tmp_path / "prompts.jsonl")
    bare = "fid_to_full_lite0, kid_to_full_lite0: without an error, for which there are too few samples or prompts."
    assert bare in capsys.readouterr().out


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


def test_full_precisions_samples_have_the_same_prompts(tmp_path, monkeypatch):
    """A metric of prompts has a difference to full precision, whose samples are judged by the same prompts."""
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Reading(PerSample):
        higher_is_better = True

        def each(self, samples, full_precision):
            seen.append((samples.path.name, list(samples.prompts)))
            return torch.arange(samples.n).double()

    made, other = (folder(tmp_path, name, images(0, 2)) for name in ("made", "full"))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    monkeypatch.setattr(score, "_metrics", lambda names: {"reading": Reading()})
    run(made, "--against", other, "--prompts", tmp_path / "prompts.txt")
    assert seen == [("made", ["a cat", "a dog"]), ("full", ["a cat", "a dog"])]


def test_what_would_fail_later_is_said_before_anything_is_read(tmp_path, capsys):
    full = images(0, 60)
    made, small = folder(tmp_path, "made", full), folder(tmp_path, "small", full[:, :8, :8], "photo{}")
    said = "fid_lite0: these have 16×16 pixels and the set 8×8: distances between sizes mean nothing"
    assert said in complaint(capsys, made, "--against", small)
    assert "--device nowhere cannot be used" in complaint(capsys, made, "--device", "nowhere")
    moving = clips(tmp_path, "moving", np.zeros((2, 3, SIDE, SIDE, 3), np.uint8))
    assert "needs frames of 128 px or more" in complaint(capsys, moving, "--frames", "--metrics", "flow_score")
    assert "it judges the prompts of vbench alone" in complaint(capsys, moving, "--frames", "--metrics", "scene")


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_what_is_not_defined_against_few_images_is_named(tmp_path, capsys, n):
    made, real = folder(tmp_path, "made", images(0, 44)), folder(tmp_path, "real", images(1, n), "photo{}")
    words = (made, "--against", real)
    least = f"{real} holds {n} image{'s' * (n > 1)}, 4 are the least to compare with"
    if n == 1:
        said = complaint(capsys, *words)
        assert f"fid_lite0: {real} holds 1 image, 2 are the least" in said
        assert f"precision_lite0: {least}" in said
        return
    run(*words, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert ("precision_lite0" in found["metrics"]) == (n == 4)
    assert {"fid_lite0", "kid_lite0"} <= set(found["metrics"])
    assert all(np.isfinite(each["value"]) for each in found["metrics"].values())
    assert (f"precision_lite0 was not computed: {least}" in capsys.readouterr().err) == (n < 4)
    if n < 4:
        assert f"recall_lite0: {least}" in complaint(capsys, *words, "--metrics", "fid_lite0", "recall_lite0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_device_that_is_not_here_is_one_message(tmp_path, capsys):
    said = complaint(capsys, folder(tmp_path, "made", images(0, 2)), "--device", "cuda")
    assert said.startswith("qdit-score: --device cuda cannot be used: ")
    assert len(said.splitlines()) == 1


def test_clips_of_other_names_are_not_compared(tmp_path, capsys):
    made, full = (clips(tmp_path, name, np.zeros((2, 3, SIDE, SIDE, 3), np.uint8)) for name in ("made", "full"))
    for number in range(2):
        (full / f"clip{number}").rename(full / f"other{number}")
    assert "the first are clip0 and other0" in complaint(capsys, made, "--against", full, "--frames")


def test_folders_of_frames_may_have_dots_in_their_names(tmp_path, capsys):
    levels = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 40 + np.zeros((SIDE, SIDE, 3), np.uint8)
    made, full = clips(tmp_path, "made", levels), clips(tmp_path, "full", levels)
    for where in (made, full):
        for number in range(2):
            (where / f"clip{number}").rename(where / f"seed.{number}")
    run(made, "--against", full, "--frames", "--metrics", "psnr_worst_frame", "--json", tmp_path / "out.json")
    assert list(json.loads((tmp_path / "out.json").read_text())["each"]["psnr_worst_frame"]) == ["seed.0", "seed.1"]


def test_pairs_are_by_name_whatever_the_suffix(tmp_path):
    """By whole file names a.b.png stands before a.png, and a.b.png behind a.apng."""
    for name, suffixes in (("made", (".png", ".png")), ("full", (".bmp", ".webp"))):
        (tmp_path / name).mkdir()
        for stem, suffix in zip(("a", "a.d"), suffixes, strict=True):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{stem}{suffix}")
    found = [Folder.find(tmp_path / name, {}.__getitem__).names for name in ("made", "full")]
    assert found == [["a", "a.d"], ["a", "a.d"]]


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


@pytest.mark.parametrize("moving", [False, True])
def test_clips_of_one_frame_have_no_motion(tmp_path, capsys, moving):
    made, full = (clips(tmp_path, name, images(0, 4)[:, None], moving) for name in ("made", "full"))
    words = (made, *([] if moving else ["--frames"]))
    short = "it needs clips of 2 frames or more, and these have 1 frame; leave it out"
    run(*words, "--against", full, "--json", tmp_path / "out.json")
    told = capsys.readouterr().err
    for name in ("temporal_flickering", "motion_energy", "subject_consistency_lite0", "temporal_difference_error"):
        assert f"{name} was not computed: {short}" in told
    assert "motion_smoothness_blend was not computed: it needs clips of 3 frames" in told
    assert set(json.loads((tmp_path / "out.json").read_text())["metrics"]) == {"psnr", "ssim", "psnr_worst_frame"}
    assert f"motion_energy: {short}" in complaint(capsys, *words)
    assert short in complaint(capsys, *words, "--metrics", "clip_temp_evalcrafter")


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
    assert "clips cannot be paired: " in complaint(capsys, *words)


def test_what_to_try_is_what_can_be_done_for_a_folder(tmp_path, capsys, monkeypatch):
    """A folder has no config: no message of a metric tells its reader to override a key of a run."""
    monkeypatch.delenv("QDIT_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    full = images(0, 3)[:, :8, :8]
    made, other, real = (folder(tmp_path, *each) for each in (("a", full), ("b", full), ("c", full, "photo{}")))
    (tmp_path / "prompts.txt").write_text("no emoji\n" * 3)
    prompts = ["--prompts", tmp_path / "prompts.txt", "--metrics", "emoji_match_lite0"]
    said = [
        (["--against", real, "--metrics", "fid_lite0"], "40 are the least; give a folder of more, or other --metrics"),
        (["--against", other, "--metrics", "fid_to_full_lite0"], "40 are the least; give a folder of more"),
        (["--against", other, "--metrics", "ssim"], "these have 8; leave it out of --metrics"),
        (["--metrics", "is"], "or give --metrics of the offline extractor (fid_lite0)"),
        (["--metrics", "emoji_match_lite0"], "no prompts are known; give them with --prompts FILE"),
        (prompts, "'no emoji' is no emoji's name; --prompts has those of dataset=emoji_prompts alone"),
    ]
    for words, advice in said:
        found = complaint(capsys, made, *words)
        assert advice in found
        assert not [word for word in ("num_samples", "eval", "use dataset", "allow_download=") if word in found], found


def test_a_problem_that_is_met_on_the_way_has_the_advice_for_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Colours, "__call__", lambda self, x: {"pooled": torch.full((len(x), 4), torch.nan)})
    said = complaint(
        capsys, folder(tmp_path, "a", images(0, 44)), "--against", folder(tmp_path, "c", images(0, 44), "p{}")
    )
    assert said.endswith("(not finite); copy the weights of lite0 again, or leave it out of --metrics\n")
