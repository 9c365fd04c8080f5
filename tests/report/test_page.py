"""The page of a study: all numbers, nothing from elsewhere, no markup out of data, and a bound of its size."""

import json
import re
from base64 import b64encode
from hashlib import sha256

import pytest
from helpers.fake_records import comparison, failed, fid, metric, record, write
from helpers.pages import parsed

from qdit.errors import UserError
from qdit.report import page
from qdit.tables import build_table, load_results

HOSTILE = "<script>alert(1)</script>&\"'"


def made(runs, study="s", command=lambda configs: f"qdit quantizer={configs[0]['quantizer.name']}"):
    return page(load_results(runs, study), study, command)


def rows_of(html):
    """Text of the cells by method and bits."""
    table = parsed(html).every("table", id="results")[0]
    return {
        (row.about["data-name"], row.about["data-bits"]): [cell.text.strip() for cell in row.every("td")]
        for row in table.every("tr")
        if "data-name" in row.about
    }


def data_of(html):
    return json.loads(parsed(html).every("script", id="data")[0].text)


def test_the_page_has_every_number_of_every_run(runs):
    rows = rows_of(made(runs))
    names = ["sqnr", "fid_lite0", "fid_lite0_delta", "weight_bits", "model_mb", "gbops", "samples_per_second"]
    table = build_table(load_results(runs, "s"), metrics=names)
    for row in table.rows:
        method, bits, *wanted = [cell.text for cell in row]
        found = [" ".join(text.replace("≈", "").split()) for text in rows[method, bits]]
        assert set(wanted) <= set(found), (method, bits)
    assert "24.0 ± 0.4" in rows["q_dit", "w4a8"]


def test_marks_are_grey_and_the_best_is_bold(tmp_path):
    runs = write(
        tmp_path,
        record("fp", "w16a16", {"fid_lite0": metric(60.0, 1.0, higher=False)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, 0.4), "fid_lite0": fid(60.1, delta_stderr=0.2)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.5, 0.4), "fid_lite0": fid(64.0)}),
    )
    table = parsed(made(runs)).every("table", id="results")[0]
    row = {each.about["data-name"]: each for each in table.every("tr") if "data-name" in each.about}
    assert "40.5 ± 0.4" in [each.text for each in row["q_dit"].every("b")]
    assert [each.text for each in row["rtn"].every("small")] == ["≈", "n.s."]
    spans = [each.about["style"] for each in row["q_dit"].every("i") if "style" in each.about]
    assert spans[0] == "--a:23.8;--m:61.9;--b:100.0"  # 39.7 to 41.3, of 39.2 to 41.3


def test_nothing_is_fetched_and_no_other_script_runs(runs):
    html = made(runs)
    assert set(re.findall(r"https?://[^\s\"'`]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.findall(r"@import|<link|<iframe|\bsrc=", html)
    assert {each.about["href"][0] for each in parsed(html).every("a")} == {"#"}
    script = parsed(html).every("script")[-1].text
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = next(each.about["content"] for each in parsed(html).every("meta") if "http-equiv" in each.about)
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_what_data_says_is_text(tmp_path):
    made_of = {"quantizer.family": HOSTILE, "calibration.mode": HOSTILE}
    runs = write(
        tmp_path,
        record(HOSTILE, "w8a8", {"sqnr": metric(40.0, 0.4)}, config=made_of, name="odd", versions={HOSTILE: HOSTILE}),
        record("rtn", "w8a8", {"sqnr": metric(39.0, 0.4)}),
        failed("q_dit", "w8a8", f"{HOSTILE}\n\x1b[31mred", name="also"),
    )
    html = page(load_results(runs), HOSTILE, lambda configs: HOSTILE)
    scripts = parsed(html).every("script")
    assert len(scripts) == 2
    assert "alert(1)" not in scripts[1].text
    assert "\x1b" not in html
    assert [each.text for each in parsed(html).every("h1")] == [HOSTILE]
    assert (HOSTILE, "w8a8") in rows_of(html)
    assert any(row["name"] == HOSTILE for row in data_of(html)["rows"])
    copied = [each.about["data-command"] for each in parsed(html).every("button") if "data-command" in each.about]
    assert set(copied) == {HOSTILE}


def test_failures_have_the_whole_of_their_messages(runs):
    html = made(runs)
    [section] = parsed(html).every("section", id="failures")
    assert "  group_size=96 does not divide 256\n  bits=1" in section.every("pre")[0].text
    assert rows_of(html)["ptq4dit", "w4a8"][3] == "—"


def test_a_study_in_which_all_failed_has_a_page(tmp_path):
    runs = write(tmp_path, failed("rtn", "w8a8", "no such thing"), failed("q_dit", "w8a8", "nor this"))
    html = made(runs)
    assert [each.text for each in parsed(html).every("pre")] == ["nor this", "no such thing"]
    assert data_of(html)["maps"] == {"time": None, "layers": None}


def test_a_metric_that_could_not_be_added_is_told(tmp_path):
    runs = write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(4.0)}, update_error="no weights of fid"))
    assert "no weights of fid" in parsed(made(runs)).every("section", id="failures")[0].text


def test_protocols_are_not_mixed(runs, tmp_path):
    write(runs, record("rtn", "w8a8", {"sqnr": metric(9.0)}, protocol="another|N=9|seed=0"))
    with pytest.raises(UserError, match="--mix-protocols of qdit-table$"):
        made(runs)


def test_the_protocol_has_its_parts(runs):
    [section] = parsed(made(runs)).every("section", id="protocol")
    parts = {each.every("dt")[0].text: each.every("dd")[0].text for each in section.every("div")}
    assert parts["samples"] == "256"
    assert parts["guidance"] == "2.0"
    assert parts["seed"] == "0"


def test_seventy_two_runs_with_pictures_that_cannot_be_compressed_fit(tmp_path):
    runs = comparison(tmp_path)
    html = made(runs)
    assert len(data_of(html)["samples"]["sheets"]) == 73
    assert len(html.encode()) < 3_000_000


def test_charts_have_what_they_draw(tmp_path):
    runs = comparison(tmp_path, ("rtn", "q_dit", "qdit_w4a8"))
    found = data_of(made(runs))
    assert found["bits"] == ["w8a8", "w6a6", "w4a8", "w4a4"]
    assert list(found["fronts"]) == ["weight_bits", "model_mb", "gbops"]
    front = found["fronts"]["weight_bits"]["sqnr"]
    values = [(found["rows"][at]["values"]["weight_bits"][0], found["rows"][at]["values"]["sqnr"][0]) for at in front]
    assert values == sorted(values)
    judged = found["samples"]["judged"]["1"]
    worst = [judged["each"][place] for place in judged["worst"]]
    assert worst == sorted(judged["each"])[:8]
    assert judged["lowest"][0][1] <= worst[0]
    assert found["samples"]["captions"][:2] == ["class 0", "class 1"]
