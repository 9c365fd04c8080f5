"""VBench's totals: golden values (VBench dossier, §2.2), and what is refused."""

import pytest

from qdit.errors import UserError
from qdit.eval.vbench.totals import DIMENSIONS, QUALITY, SEMANTIC, Value, totals


def of(values) -> list[float]:
    return [total.value for total in totals({name: Value(value) for name, value in values.items()}).values()]


def test_golden_values():
    assert of({name: scale.most for name, scale in DIMENSIONS.items()}) == pytest.approx([1, 1, 1])
    assert of({name: scale.least for name, scale in DIMENSIONS.items()}) == pytest.approx([0, 0, 0])
    assert of(dict.fromkeys(DIMENSIONS, 0.5)) == pytest.approx([0.143361, 0.845452, 0.283779], abs=1e-6)
    assert of(dict.fromkeys(DIMENSIONS, 0.0)) == pytest.approx([-0.714598, -0.000351, -0.571748], abs=1e-6)
    assert (len(QUALITY), len(SEMANTIC)) == (7, 9)


def test_errors_add_up():
    exact = {name: Value(0.5, 0.0) for name in DIMENSIONS}
    found = totals(exact | {"dynamic_degree": Value(0.5, 0.1)})
    assert found["quality"].stderr == pytest.approx(0.1 * 0.5 / 6.5)
    assert found["total"].stderr == pytest.approx(0.8 * 0.1 * 0.5 / 6.5)
    assert totals(exact | {"scene": Value(0.5)})["total"].stderr is None


def test_no_total_without_every_dimension_of_one_protocol():
    values = {name: Value(0.5, 0.01, "a") for name in DIMENSIONS}
    del values["scene"], values["color"]
    with pytest.raises(UserError, match="no total of VBench without color, scene: it needs all 16 dimensions"):
        totals(values)
    values = {name: Value(0.5, 0.01, "mp4" if name == "scene" else "memory") for name in DIMENSIONS}
    with pytest.raises(UserError, match=r"over several protocols \(memory: .*; mp4: scene\)"):
        totals(values)
