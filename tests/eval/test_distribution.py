"""Distribution metrics as a run uses them: values, paired differences, what they refuse."""

import pytest
import torch

from qdit.errors import UserError
from qdit.eval import distribution
from qdit.eval.distribution import FID, KID, SFID, FIDInfinity, InceptionScore, Precision, Recall

ALL = [FID, FIDInfinity, SFID, InceptionScore, KID, Precision, Recall]


@pytest.mark.parametrize("metric", ALL)
def test_full_precision_and_a_paired_difference(metric, held, features, reference):
    real = reference(features(300, 0))
    base = features(100, 1)
    noise = features(100, 2)
    full = held(base)
    near = held({kind: x + 0.02 * noise[kind] for kind, x in base.items()})
    ours = metric(extractor="lite0")
    alone = ours.compute(full, full, real)
    assert (alone.n, alone.delta, alone.delta_stderr) == (100, None, None)
    assert alone.stderr > 0
    there = ours.compute(near, full, real)
    assert there.delta == pytest.approx(there.value - alone.value)
    if metric not in (Precision, Recall):  # these move in steps of 1/n
        assert 0 < there.delta_stderr < 0.5 * there.stderr


def test_each_metric_reads_its_own_features(held, features, reference):
    real = reference(features(300, 0))
    base, moved = features(100, 1), features(100, 1, shift=2.0)
    values = {m: m(extractor="lite0").compute(held(base), held(base), real).value for m in ALL}
    assert values[FIDInfinity] < 0.9 * values[FID]  # less the bias of 100 samples
    for kind, readers in {
        "pooled": {FID, FIDInfinity, KID, Precision, Recall},
        "spatial": {SFID},
        "logits": set(),  # the softmax does not see a shift
    }.items():
        changed = held(base | {kind: moved[kind]})
        new = {m: m(extractor="lite0").compute(changed, changed, real).value for m in ALL}
        assert {m for m in ALL if abs(new[m] - values[m]) > 1e-6} == readers
    sharp = held(base | {"logits": 3 * base["logits"]})
    assert InceptionScore(extractor="lite0").compute(sharp, sharp, None).value > values[InceptionScore]


def test_directions(held, features, reference):
    real, near, far = features(300, 0), held(features(100, 1)), held(features(100, 1, shift=3.0))
    for metric in (FID, KID, Precision):
        good, bad = (metric(extractor="lite0").compute(x, x, reference(real)).value for x in (near, far))
        assert (good > bad) == metric.higher_is_better


def test_precision_and_recall_are_not_swapped(held, features, reference):
    """Samples that all sit at the centre of the data are precise and miss nearly all of it."""
    base = features(100, 1)
    centre = held(base | {"pooled": 0.05 * base["pooled"]})
    values = [
        m(extractor="lite0").compute(centre, centre, reference(features(300, 0))).value for m in (Precision, Recall)
    ]
    assert values[0] == 1
    assert values[1] < 0.1


def test_features_seen_before_are_not_computed_again(held, features, reference, monkeypatch):
    real, calls = reference(features(300, 10)), []
    original = distribution.precision_recall
    monkeypatch.setattr(distribution, "precision_recall", lambda *a: calls.append(1) or original(*a))
    sets = [held(features(60, 11)), held(features(60, 12))]
    for metric in (Precision, Recall):
        metric(extractor="lite0").compute(sets[1], sets[0], real)
    assert len(calls) == 2
    Recall(extractor="lite0").compute(held(features(60, 13)), sets[0], real)
    assert len(calls) == 3


def test_refusals(held, features, reference):
    full, ours = held(features(60, 0)), FID(extractor="lite0")
    with pytest.raises(UserError, match="FID needs reference"):
        ours.compute(full, full, None)
    with pytest.raises(UserError, match="60 samples cannot be paired with 50"):
        ours.compute(full, held(features(50, 0)), reference(features(90, 1)))
    broken = features(60, 0)
    broken["pooled"][7, 3] = torch.inf
    with pytest.raises(UserError, match="sample 7 are damaged"):
        ours.compute(held(broken), full, reference(features(90, 1)))
    short = features(60, 0) | {"spatial": torch.zeros(59, 6)}
    with pytest.raises(UserError, match="59 spatial features"):
        ours.compute(held(short), full, reference(features(90, 1)))
    with pytest.raises(UserError, match="extractor='vgg' is unknown"):
        FID(extractor="vgg")
