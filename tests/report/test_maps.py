"""Error maps: one order of layers for methods that quantize different ones, and nothing out of odd records."""

from qdit.report.maps import by_layer, over_time


def layer(site, block, sqnr, role="qkv"):
    return {"site": site, "role": role, "block": block, "sqnr": sqnr}


def test_layers_are_in_the_order_of_blocks_whoever_quantizes_them():
    some = {"layers": [layer("b0.q", 0, 20.04), layer("b1.q", 1, 21.0)]}
    more = {"layers": [layer("out", None, 9.0), layer("b0.q", 0, 19.0), layer("b0.ada", 0, 18.0), layer("b1.q", 1, 5)]}
    found = by_layer({3: some, 5: more})
    assert found is not None
    assert [each["name"].split()[0] for each in found["columns"]] == ["b0.q", "b0.ada", "b1.q", "out"]
    assert [each["group"] for each in found["columns"]] == ["0", "0", "1", "outside"]
    assert found["rows"] == {3: [20.0, None, 21.0, None], 5: [19.0, 18.0, 5, 9.0]}


def test_odd_layers_are_left_out():
    odd = [7, {"site": 3, "sqnr": 1.0}, layer("a", 0, None), layer("b", 0, float("inf")), layer("c", "x", "text")]
    found = by_layer({0: {"layers": odd}, 1: {}})
    assert found is not None
    assert found["rows"] == {0: [None, None]}
    assert by_layer({0: {"layers": None}}) is None


def test_timesteps_are_those_of_the_first():
    curve = {"x": [900, 450, 0], "y": [30.0, 20.0, 9.96], "xlabel": "timestep", "ylabel": "SQNR"}
    other = curve | {"x": [900, 300, 0]}
    found = over_time({i: {"curves": {"sqnr_per_timestep": each}} for i, each in enumerate((curve, other, curve))})
    assert found is not None
    assert list(found["rows"]) == [0, 2]
    assert found["rows"][0] == [30.0, 20.0, 10.0]
    assert [each["group"] for each in found["columns"]] == ["900", "450", "0"]
    assert over_time({0: {}}) is None
