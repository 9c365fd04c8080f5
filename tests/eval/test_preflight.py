"""What metrics ask for before a run begins: references, weights, and every problem in one message."""

import pytest
from helpers.configs import config

from qdit.assets import cached
from qdit.errors import UserError
from qdit.eval.distribution import FID, KID, SFID, InceptionScore, Precision, Recall
from qdit.eval.paired import SQNR
from qdit.eval.preflight import prepare
from qdit.eval.reference import find
from qdit.eval.video import FrameConsistency
from qdit.runs.parts import plan


def test_preflight_of_one_metric(features, reference):
    assert FID(extractor="lite0").preflight() == []
    (problem,) = FID(extractor="lite0").preflight(16)
    assert "16 samples are too few" in problem
    without_images = reference(features(90, 0), images=False)
    assert FID(extractor="lite0").preflight(64, without_images) == []
    (problem,) = KID(extractor="lite0").preflight(64, without_images)
    assert "no features of single images" in problem


def test_a_reference_of_too_few_images_is_said_before_a_run(features, reference):
    three = reference({name: rows[:3] for name, rows in features(90, 0).items()})
    for metric in (Precision, Recall):
        assert metric(extractor="lite0").preflight(64, three) == ["reference toy is of 3 images, 4 are the least"]
    for metric in (FID, SFID, KID, InceptionScore):
        assert metric(extractor="lite0").preflight(64, three) == []
    three.pooled, three.n = three.pooled[:1], None
    assert KID(extractor="lite0").preflight(64, three) == ["reference toy is of 1 image, 2 are the least"]
    for metric in (FID, InceptionScore):  # nobody noted how many are behind the means; none is needed
        assert metric(extractor="lite0").preflight(64, three) == []


def test_prepare_finds_the_shipped_reference(tmp_path):
    metrics = {"sqnr": SQNR(), "fid_lite0": FID(extractor="lite0"), "is_lite0": InceptionScore(extractor="lite0")}
    prepared = prepare(metrics, n=64, dataset="emoji", cache_dir=tmp_path)
    assert set(prepared.extractors) == set(prepared.references) == {"lite0"}
    assert prepared.reference_of(metrics["fid_lite0"]).n == 2233
    assert prepared.reference_of(metrics["sqnr"]) is None
    nothing = prepare({"sqnr": SQNR()}, n=2, dataset="none", cache_dir=tmp_path)
    assert (nothing.extractors, nothing.references) == ({}, {})


def test_prepare_names_every_problem_once(tmp_path, monkeypatch):
    """Missing weights, a missing reference and too few samples, before anything is sampled."""
    monkeypatch.setenv("QDIT_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    metrics = {name: metric(extractor="inception") for name, metric in {"fid": FID, "sfid": SFID}.items()}
    with pytest.raises(UserError) as caught:
        prepare(metrics | {"kid_lite0": KID(extractor="lite0")}, n=8, dataset="cats", cache_dir=tmp_path)
    message = str(caught.value)
    assert message.count("MissingWeights") == 1
    assert "eval.fid, sfid: MissingWeights" in message
    assert "eval.fid, sfid, kid_lite0: 8 samples are too few" in message
    assert "no inception reference statistics of cats" in message
    assert "no lite0 reference statistics of cats" in message
    assert "qdit-refs import" in message


def test_prepare_refuses_a_reference_of_other_weights(tmp_path):
    other = find("emoji", "lite0", tmp_path)
    other.provenance["extractor_sha256"] = "0" * 64
    other.save(cached("other", "lite0", tmp_path))
    with pytest.raises(UserError, match="other lite0 weights"):
        prepare({"fid_lite0": FID(extractor="lite0")}, n=64, dataset="other", cache_dir=tmp_path)


def test_an_extractor_has_one_set_of_weights(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"weights")
    given = [str(tmp_path / name) for name in ("a.pth", "b.pth")]
    first, other = (FrameConsistency(extractor="dino", weights=path) for path in given)
    with pytest.raises(UserError, match=r"eval.b: the weights of dino are given as .*a.pth and .*b.pth; all metrics"):
        prepare({"a": first, "b": other}, n=4, dataset="emoji", cache_dir=tmp_path)
    assert set(prepare({"a": first, "b": first}, n=4, dataset="emoji", cache_dir=tmp_path).extractors) == {"dino"}


def test_names_of_classes_are_prompts_too(tmp_path):
    chosen = config("eval=emoji_match_lite0", f"cache_dir={tmp_path}")
    with pytest.raises(UserError, match="eval.emoji_match_lite0: the prompt .* is no emoji's name"):
        plan(chosen)
