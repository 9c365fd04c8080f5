"""A study of three methods."""

import pytest
from helpers.fake_records import failed, fid, metric, record, write


@pytest.fixture
def runs(tmp_path):
    """Full precision, three methods at two bits, one of which failed."""
    return write(
        tmp_path / "runs",
        record("fp", "w16a16", {"fid_lite0": metric(60.0, 1.0, higher=False)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, 0.4), "fid_lite0": fid(61.0)}),
        record("rtn", "w4a8", {"sqnr": metric(21.0, 0.4), "fid_lite0": fid(74.0)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.5, 0.4), "fid_lite0": fid(60.2)}),
        record("q_dit", "w4a8", {"sqnr": metric(24.0, 0.4), "fid_lite0": fid(66.0)}),
        record("ptq4dit", "w8a8", {"sqnr": metric(38.0, 0.4), "fid_lite0": fid(63.0)}),
        failed("ptq4dit", "w4a8", "2 problems in this config:\n  group_size=96 does not divide 256\n  bits=1"),
    )
