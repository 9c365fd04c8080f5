"""qdit-refs: import, build, floor, and its complaints."""

import json

import numpy as np
import pytest
import torch
from helpers import commands
from helpers.tiny import Pixels
from PIL import Image

from qdit.assets import cached
from qdit.cli import refs
from qdit.dataset.prompts import Prompts
from qdit.errors import UserError
from qdit.eval.distribution import FID, SFID
from qdit.eval.extractor import EXTRACTORS, make_extractor
from qdit.eval.image_files import Images, adm_crop
from qdit.eval.make_reference import build, floor
from qdit.eval.preflight import prepare
from qdit.eval.reference import load
from qdit.eval.statistics import Moments


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "lite0", Pixels)
    return make_extractor("lite0")


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(0, 256, (150, 6, 6, 3), dtype=np.uint8))
    return path


def run(*arguments) -> None:
    assert refs.main([str(a) for a in arguments]) == 0


def complaint(capsys, *words) -> str:
    return commands.complaint(capsys, refs.main, *words)


def test_build_streams_to_the_moments_of_all(tiny, npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qdit.eval.make_reference.KEPT", 40)
    run("build", npz, "--name", "toy", "--cache-dir", tmp_path)
    path = cached("toy", "lite0", tmp_path)
    assert capsys.readouterr().out.strip() == str(path)
    images = torch.from_numpy(np.load(npz)["arr_0"]).permute(0, 3, 1, 2)
    features, reference = tiny(images), load(path)
    direct = Moments.of(features["pooled"])
    torch.testing.assert_close(reference.mu, direct.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(reference.sigma, direct.covariance(), rtol=1e-5, atol=1e-7)
    spatial = Moments.of(features["spatial"])
    torch.testing.assert_close(reference.sigma_s, spatial.covariance(), rtol=1e-5, atol=1e-7)
    assert (reference.n, len(reference.pooled)) == (150, 40)
    torch.testing.assert_close(reference.pooled[[0, -1]], features["pooled"][[0, -1]], rtol=0, atol=1e-3)
    assert reference.provenance["source"] == "real.npz"
    assert len(reference.provenance["source_sha256"]) == 64


def test_captioned_folders_give_references_and_prompts_of_the_same_images(tiny, tmp_path, capsys):
    folder = tmp_path / "mjhq30k_imgs"
    for number in range(12):
        file = folder / ("food" if number % 2 else "art") / f"{number:02}ab.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (number * 20, 0, 0)).save(file)
    about = {f"{number:02}ab": {"category": "art", "prompt": f"caption\n{number}"} for number in range(11)}
    (tmp_path / "meta_data.json").write_text(json.dumps(about))
    words = ("build", folder, "--name", "mjhq", "--captions", tmp_path / "meta_data.json", "--cache-dir", tmp_path)
    run(*words, "--size", 6, "--n", 5, "--seed", 1)
    prompts = cached("mjhq", "lite0", tmp_path).parent / "mjhq.jsonl"
    said = capsys.readouterr().out.splitlines()
    assert said[1] == str(prompts)
    dataset = Prompts(name="p", file=str(prompts), image_size=6, reference="mjhq")
    assert f"dataset.file={prompts} dataset.reference=mjhq dataset.image_size=6 num_samples=5" in said[2]
    names = [caption.id for caption in dataset.captions]
    assert names == sorted(names)
    assert [c.text for c in dataset.captions] == [f"caption {int(name[:2])}" for name in names]
    reference = load(cached("mjhq", "lite0", tmp_path))
    images = torch.tensor([[int(name[:2]) * 20, 0, 0] for name in names])[:, :, None, None].expand(5, 3, 6, 6)
    direct = Moments.of(tiny(images.to(torch.uint8))["pooled"]).mean
    torch.testing.assert_close(reference.mu, direct, rtol=1e-3, atol=1e-3)  # features are kept in float16
    assert reference.provenance["prompts"] == "5 of meta_data.json, seed 1"
    run(*words, "--size", 6)
    assert len(prompts.read_text().splitlines()) == load(cached("mjhq", "lite0", tmp_path)).n == 11
    assert "--n chooses among images with captions" in complaint(capsys, *words[:4], "--n", 3)


def test_floor_falls_with_n_and_is_repeatable(tiny, npz, tmp_path, capsys):
    run("build", npz, "--name", "toy", "--cache-dir", tmp_path)
    out = tmp_path / "floor.json"
    run("floor", npz, "--name", "toy", "--cache-dir", tmp_path, "--n", 60, 600, "--out", out)
    assert "N=600: fid_lite0" in capsys.readouterr().out
    report = json.loads(out.read_text())["floor"]
    assert set(report["60"]) == {"fid_lite0", "sfid_lite0", "is_lite0", "kid_lite0"}
    assert report["600"]["fid_lite0"]["mean"] < 0.5 * report["60"]["fid_lite0"]["mean"]
    reference = load(cached("toy", "lite0", tmp_path))
    again = floor(Images(npz), reference, make_extractor("lite0"), [60, 600], draws=5, seed=0)
    assert again == report
    assert "at least 2" in complaint(
        capsys, "floor", npz, "--name", "toy", "--cache-dir", tmp_path, "--n", 60, "--draws", 1
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--n", 60, 1), "--n 1 gives no covariance"),
        (("--seed", -1), "--seed -1; a whole number"),
        (("--size", 0), "--size 0 is no side of an image"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tiny, npz, tmp_path, capsys, words, said):
    run("build", npz, "--name", "toy", "--cache-dir", tmp_path)
    assert said in complaint(capsys, "floor", npz, "--name", "toy", "--cache-dir", tmp_path, *words)


def adm_file(path, **changes):
    g = np.random.default_rng(0)
    arrays = {"arr_0": g.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)}
    for suffix, size in (("", 2048), ("_s", 2023)):
        arrays |= {"mu" + suffix: g.random(size), "sigma" + suffix: np.diag(g.random(size))}
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_import_without_weights_keeps_the_statistics(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QDIT_INCEPTION_WEIGHTS", str(tmp_path / "none"))
    source = adm_file(tmp_path / "adm.npz")
    run("import", source, "--name", "imagenet64", "--cache-dir", tmp_path)
    assert "KID, precision and recall" in capsys.readouterr().err
    reference = load(cached("imagenet64", "inception", tmp_path))
    torch.testing.assert_close(reference.mu, torch.from_numpy(np.load(source)["mu"]), rtol=1e-6, atol=0)
    assert (reference.pooled, reference.n) == (None, None)


def test_import_refuses_what_is_not_adms(tmp_path, capsys):
    lacking = adm_file(tmp_path / "a.npz", mu_s=None)
    assert "lacks mu_s (it holds arr_0, mu, sigma, sigma_s)" in complaint(capsys, "import", lacking)
    wrong = adm_file(tmp_path / "b.npz", mu=np.zeros(1280))
    assert "mu (1280,)" in complaint(capsys, "import", wrong)
    pickled = tmp_path / "c.npz"
    np.savez(pickled, mu=np.array([{"a": 1}], dtype=object), sigma=0, mu_s=0, sigma_s=0)
    assert "cannot be read" in complaint(capsys, "import", pickled)
    text = tmp_path / "d.npz"
    text.write_text("hello")
    assert "cannot be read as npz" in complaint(capsys, "import", text)
    torn = tmp_path / "f.npz"
    whole = bytearray(adm_file(torn).read_bytes())
    whole[len(whole) // 2] ^= 255
    torn.write_bytes(whole)
    assert "cannot be read as npz" in complaint(capsys, "import", torn)
    assert "does not exist" in complaint(capsys, "import", tmp_path / "e.npz")


def test_complaints_about_images(tiny, tmp_path, capsys):
    base = ("--name", "toy", "--cache-dir", tmp_path)
    assert "not a folder with images" in complaint(capsys, "build", tmp_path, *base)
    floats = tmp_path / "floats.npz"
    np.savez(floats, arr_0=np.zeros((3, 8, 8, 3)))
    assert "float64 (3, 8, 8, 3)" in complaint(capsys, "build", floats, *base)
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(2))
    assert "it holds x" in complaint(capsys, "build", other, *base)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    Image.new("L", (9, 30)).save(folder / "b.jpg")
    assert "different sizes" in complaint(capsys, "build", folder, *base)
    run("build", folder, *base, "--size", 8)
    (folder / "c.png").write_text("not an image")
    assert "c.png cannot be read" in complaint(capsys, "build", folder, *base, "--size", 8)
    assert "extractor='vgg' is unknown" in complaint(capsys, "build", folder, *base, "--extractor", "vgg")
    assert "--device nonsense" in complaint(capsys, "build", folder, *base, "--device", "nonsense")


def test_adm_crop_halves_then_crops_the_centre():
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:8], pixels[:, 8:12] = 100, 200
    cropped = np.asarray(adm_crop(Image.fromarray(pixels), 4))
    assert cropped.shape == (4, 4, 3)
    assert cropped[0, :, 0].tolist() == [100, 100, 200, 200]
    odd = adm_crop(Image.fromarray(np.zeros((11, 17, 3), dtype=np.uint8)), 8)
    assert odd.size == (8, 8)


def test_a_build_and_its_file_agree(tiny, npz, tmp_path):
    built = build(Images(npz), "toy", tiny)
    built.save(tmp_path / "toy.safetensors")
    assert abs(float((load(tmp_path / "toy.safetensors").mu - built.mu).abs().max())) < 1e-4


def test_no_image_is_left_out_in_silence(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert len(Images(tmp_path)) == 1
    Image.new("RGB", (1, 60000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="too long and thin"):
        Images(tmp_path, 256)[0]
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"b\.png does not exist; mend it"):
        Images(tmp_path)


def test_statistics_of_mu_and_sigma_alone_serve_fid(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QDIT_INCEPTION_WEIGHTS", str(tmp_path / "none"))
    source = adm_file(tmp_path / "fid.npz", mu_s=None, sigma_s=None, arr_0=None)
    run("import", source, "--name", "plain", "--cache-dir", tmp_path)
    reference = load(cached("plain", "inception", tmp_path))
    assert (reference.mu_s, reference.sigma_s, reference.image_size) == (None, None, None)
    assert len(reference.mu) == 2048
    said = SFID(extractor="inception").preflight(100, reference)
    assert [problem for problem in said if "no mu_s and sigma_s" in problem]
    assert not [problem for problem in FID(extractor="inception").preflight(100, reference) if "mu_s" in problem]


def test_a_reference_of_images_of_another_size_is_refused(tiny, npz, tmp_path, capsys):
    run("build", npz, "--name", "small", "--size", 16, "--cache-dir", tmp_path)
    about = {"n": 100, "dataset": "small", "cache_dir": tmp_path}
    metrics = {"fid_lite0": FID(extractor="lite0")}
    assert prepare(metrics, image_size=16, **about).references["lite0"].image_size == (16, 16)
    with pytest.raises(
        UserError, match=r"eval\.fid_lite0: reference small is of images of 16×16 px.* 32×32.*--size 32"
    ):
        prepare(metrics, image_size=32, **about)
    assert "of images of 16×16 px" in complaint(
        capsys, "floor", npz, "--name", "small", "--size", 24, "--cache-dir", tmp_path
    )
