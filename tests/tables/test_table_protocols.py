"""Numbers of different protocols, sample counts or references never share a column."""

import pytest
from helpers.fake_records import PROTOCOL, column, failed, fid, metric, record, write

from qdit.errors import UserError
from qdit.tables import build_table, load_results, where


@pytest.fixture
def mixed(runs):
    other = PROTOCOL.replace("ddim20", "ddim50")
    steps = {"sampler.steps": 50}
    return write(
        runs,
        record("rtn", "w4a8", {"fid_lite0": fid(50.0, full=40.0)}, protocol=other, config=steps),
        record("fp", "w16a16", {"fid_lite0": metric(40.0, 1.0, higher=False)}, protocol=other, config=steps),
    )


def test_protocols_are_not_mixed(mixed):
    with pytest.raises(UserError) as error:
        build_table(load_results(mixed))
    text = str(error.value)
    assert "ddim20" in text
    assert "ddim50" in text
    assert "cfg=2.0" not in text  # only what differs
    assert "--mix-protocols" in text
    condition = next(line for line in text.splitlines() if "ddim50" in line).split("--where ")[1]
    kept = build_table(where(load_results(mixed), [condition]))
    assert column(kept, "FID") == {
        ("full precision", "w16a16"): "40.00 ± 1.00",
        ("rtn", "w4a8"): "50.00 ± 1.00",
    }


def test_one_text_with_two_identifiers_is_two_protocols(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("q_dit", "w8a8", {}, protocol_id="retrained"))
    with pytest.raises(UserError, match="id=retrained"):
        build_table(load_results(tmp_path))


def test_mixed_protocols_stand_apart(mixed):
    table = build_table(load_results(mixed), mix_protocols=True)
    assert table.header[0] == "protocol"
    fids = column(table, "FID")
    assert fids[("ddim50", "full precision", "w16a16")] == "40.00 ± 1.00"
    assert fids[("ddim20", "full precision", "w16a16")] == "60.00 ± 1.00"
    at = table.header.index("FID_lite0 ↓")
    assert not next(row for row in table.rows if row[0].text == "ddim50" and row[1].text == "rtn")[at].mark
    assert sum(line.startswith("Protocol ") for line in table.lines) == 2


def test_a_key_that_tells_protocols_apart_needs_no_label(mixed):
    table = build_table(load_results(mixed), cols="sampler.steps", metrics=["fid_lite0"], mix_protocols=True)
    assert table.header[:4] == ["quantizer", "bits", "FID_lite0 ↓ 20", "FID_lite0 ↓ 50"]
    assert [cell.text for cell in table.rows[0]][2:4] == ["60.00 ± 1.00", "40.00 ± 1.00"]


def test_sample_counts_are_not_mixed(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0)}),
        record("q_dit", "w8a8", {"fid_lite0": fid(60.0, n=128)}),
    )
    with pytest.raises(UserError, match="fid_lite0 was computed from 128 and from 256 samples"):
        build_table(load_results(tmp_path))


OLD, NEW = {"settings": "0ld00000"}, {"settings": "ffff0000"}


@pytest.fixture
def two_references(tmp_path):
    """The reference was made anew after the first run; full precision and a later run have the new one."""
    return write(
        tmp_path,
        record("fp", "w16a16", {"fid_lite0": metric(70.0, 1.0, higher=False) | NEW}),
        record("rtn", "w8a8", {"fid_lite0": fid(61.0) | OLD, "sqnr": metric(30.0) | OLD}),
        record("q_dit", "w8a8", {"fid_lite0": fid(71.0, full=70.0) | NEW, "sqnr": metric(31.0) | OLD}),
        failed("ptq4dit", "w8a8", "no"),
    )


@pytest.mark.parametrize("mix", [False, True])
def test_a_metric_of_two_references_is_two_columns(two_references, mix):
    frame = load_results(two_references)
    table = build_table(frame, metrics=["fid_lite0", "sqnr"], mix_protocols=mix)
    assert table.header[2:5] == ["FID_lite0@0ld00000 ↓", "FID_lite0@ffff0000 ↓", "SQNR (dB) ↑"]
    shown = {row[0].text: [cell.text for cell in row[2:4]] for row in table.rows}
    assert shown["full precision"] == ["—", "70.00 ± 1.00"]
    assert shown["rtn"] == ["61.00 ± 1.00", "—"]
    assert shown["q_dit"] == ["—", "71.00 ± 1.00"]
    assert {cell.mark for row in table.rows for cell in row[2:4]} == {""}  # neither has a rival
    assert any("fid_lite0 was computed with several settings" in line for line in table.lines)
    deltas = build_table(frame, metrics=["fid_lite0_delta"])
    assert deltas.header[2:4] == ["ΔFID_lite0@0ld00000 ↓", "ΔFID_lite0@ffff0000 ↓"]
    assert column(deltas, "ΔFID_lite0@ffff")[("q_dit", "w8a8")] == "1.00 ± 0.20"


def test_seeds_of_two_references_are_not_averaged(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0) | OLD}, seed=0),
        record("rtn", "w8a8", {"fid_lite0": fid(71.0) | NEW}, seed=1),
    )
    [row] = build_table(load_results(tmp_path)).rows
    assert [cell.text for cell in row[2:4]] == ["61.00 ± 1.00", "71.00 ± 1.00"]


def test_a_metric_of_one_reference_keeps_its_name(two_references):
    table = build_table(where(load_results(two_references), ["fid_lite0_settings=ffff0000"]))
    assert table.header[2:4] == ["SQNR (dB) ↑", "FID_lite0 ↓"]
    assert not any("several settings" in line for line in table.lines)


def test_the_protocol_stands_below_the_table(runs):
    last = build_table(load_results(runs)).lines[-1]
    assert last.endswith(
        "emoji_dit · emoji · ddim20 · cfg=2.0 · N=256 · bs=32 · float32 · seed 0 · quantized runs: simulated."
    )


def test_metrics_that_judge_some_of_the_samples_share_a_column(tmp_path):
    """Such as VBench's static filter: as many were drawn."""
    for name, kept in (("rtn", 45), ("q_dit", 41)):
        one = record(name, "w8a8", {"temporal_flickering_static": metric(0.9, n=kept)}, config={"num_samples": 256})
        write(tmp_path, one)
    assert set(column(build_table(load_results(tmp_path)), "temporal_flickering_static").values()) == {"0.900"}


def test_programs_elsewhere_that_differ_have_a_column_each(tmp_path):
    for name, version in (("rtn", "0.1.5"), ("q_dit", "0.1.6")):
        made = metric(0.9) | {"settings": "1a2b3c4d", "protocol": f"vbench {version}"}
        write(tmp_path, record(name, "w8a8", {"scene": made}))
    assert len([cell for cell in build_table(load_results(tmp_path)).header if "scene" in cell]) == 2
