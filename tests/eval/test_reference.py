"""Reference files: round trip, search order, and refusals that name the file."""

import json

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from qdit.assets import ASSETS, cached
from qdit.errors import UserError
from qdit.eval.reference import Reference, find, load
from qdit.eval.statistics import Moments, frechet_distance
from qdit.storage.seal import TENSORS_DIGEST


def lite0_reference(n: int = 40, kept: int | None = None) -> Reference:
    g = torch.Generator().manual_seed(0)
    pooled, spatial = torch.rand(n, 1280, generator=g), torch.rand(n, 448, generator=g)
    a, b = Moments.of(pooled), Moments.of(spatial)
    return Reference(
        name="toy",
        extractor="lite0",
        mu=a.mean,
        sigma=a.covariance(),
        mu_s=b.mean,
        sigma_s=b.covariance(),
        pooled=pooled[:kept],
        n=n,
        provenance={"source": "toy.npz"},
    )


def rewrite(path, **changes):
    """Change tensors of a saved reference, as someone would who makes files of their own."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    del metadata["qdit.digest"]  # as files of a qdit that wrote none; others are refused before they are looked at
    save_file(tensors | changes, path, {k: v for k, v in metadata.items() if k != TENSORS_DIGEST})


@pytest.mark.parametrize("kept", [None, 30])
def test_round_trip(tmp_path, kept):
    """All features stored: moments follow from them. A part of them stored: the moments are stored too."""
    before = lite0_reference(kept=kept)
    before.save(tmp_path / "r.safetensors")
    after = load(tmp_path / "r.safetensors")
    with safetensors.safe_open(tmp_path / "r.safetensors", framework="pt") as file:
        assert ("sigma" in file.keys()) == (kept is not None)  # noqa: SIM118
    assert (after.name, after.extractor, after.n, after.provenance) == ("toy", "lite0", 40, {"source": "toy.npz"})
    assert len(after.pooled) == (kept or 40)
    distance = frechet_distance(before.mu, before.sigma, after.mu, after.sigma)
    assert abs(distance) < 1e-4
    torch.testing.assert_close(after.sigma_s, before.sigma_s, rtol=1e-6, atol=1e-8)
    assert after.digest == before.digest  # of what the file holds


def test_shipped_emoji_reference():
    reference = load(ASSETS / "emoji" / "reference-lite0.safetensors")
    assert (reference.name, reference.n, len(reference.pooled)) == ("emoji", 2233, 2233)
    moments = Moments.of(reference.pooled)
    assert abs(frechet_distance(moments.mean, moments.covariance(), reference.mu, reference.sigma)) < 1e-3
    floor = json.loads((ASSETS / "emoji" / "floor-lite0.json").read_text())
    assert floor["provenance"]["reference_digest"] == reference.digest
    assert set(floor["floor"]) == {"256", "1024", "2048"}
    assert floor["floor"]["2048"]["fid_lite0"]["mean"] < floor["floor"]["256"]["fid_lite0"]["mean"]


def test_search_order(tmp_path):
    toy = lite0_reference()
    toy.save(cached("emoji", "lite0", tmp_path))
    assert find("emoji", "lite0", tmp_path).name == "emoji"
    toy.save(cached("mine", "lite0", tmp_path))
    assert find("mine", "lite0", tmp_path).name == "toy"
    with pytest.raises(UserError, match=r"looked in .*gone-lite0"):
        find("gone", "lite0", tmp_path)
    toy.save(cached("mine", "inception", tmp_path))
    with pytest.raises(UserError, match="is of extractor lite0, the metric uses inception"):
        find("mine", "inception", tmp_path)


def bad_asymmetric(reference):
    sigma = reference.sigma_s.float()
    sigma[0, 1] += 1
    return {"sigma_s": sigma}


def bad_indefinite(reference):
    sigma = reference.sigma_s.float()
    sigma[3, 3] = -1
    return {"sigma_s": sigma}


def bad_not_finite(reference):
    pooled = reference.pooled.half()
    pooled[5, 5] = torch.nan
    return {"pooled": pooled}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda _: {"mu_s": torch.zeros(2023)}, r"mu \(2023,\).*\(448,\)"),
        (lambda _: {"pooled": torch.zeros(40, 2048).half()}, r"mu \(2048,\).*\(1280,\)"),
        (bad_asymmetric, "not symmetric"),
        (bad_indefinite, "eigenvalue"),
        (bad_not_finite, "not finite"),
    ],
    ids=["spatial size", "pooled size", "asymmetric", "indefinite", "nan"],
)
def test_unusable_statistics_are_refused_by_name(tmp_path, change, complaint):
    path, reference = tmp_path / "bad.safetensors", lite0_reference()
    reference.save(path)
    rewrite(path, **change(reference))
    with pytest.raises(UserError, match=complaint) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_references(tmp_path):
    torn = tmp_path / "torn.safetensors"
    lite0_reference().save(torn)
    torn.write_bytes(torn.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    for path in (torn, foreign, text):
        with pytest.raises(UserError, match="is not a reference file"):
            load(path)
    with pytest.raises(UserError, match="do not exist"):
        load(tmp_path / "none")
