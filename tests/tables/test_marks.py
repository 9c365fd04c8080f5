"""What is best, and what cannot be told from it."""

from helpers.fake_records import fid, metric, record, write

from qdit.tables import build_table, load_results


def test_best_is_bold_at_its_bits_and_ties_are_marked(runs):
    table = build_table(load_results(runs), metrics=["sqnr", "fid_lite0"])
    marks = {(row[0].text, row[1].text): (row[2].mark, row[3].mark) for row in table.rows}
    assert marks[("full precision", "w16a16")] == ("", "")  # the reference does not compete
    assert marks[("q_dit", "w8a8")] == ("best", "best")
    # 0.5 dB of two errors of 0.4: tied. FID 0.8 apart: alone 1.0 each would tie, paired 0.2 each tells them apart.
    assert marks[("rtn", "w8a8")] == ("tied", "")
    assert marks[("rtn", "w4a8")] == ("", "")
    assert marks[("ptq4dit", "w4a8")] == ("", "")


def test_unpaired_errors_are_used_where_one_paired_is_missing(tmp_path):
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": metric(61.0, 1.0, higher=False)}),
        record("q_dit", "w8a8", {"fid_lite0": fid(60.2)}),
    )
    table = build_table(load_results(tmp_path))
    assert [row[2].mark for row in table.rows] == ["tied", "best"]


def test_rows_of_other_seeds_are_compared_by_their_differences_to_full_precision(tmp_path):
    """Seed 1 is an easy one: its value is lower, and its difference to full precision is not."""
    write(
        tmp_path,
        record("rtn", "w8a8", {"fid_lite0": fid(61.0, full=60.0)}, seed=0),
        record("q_dit", "w8a8", {"fid_lite0": fid(51.1, full=50.0)}, seed=1),
        record("ptq4dit", "w8a8", {"fid_lite0": fid(60.9, full=50.0)}, seed=1),
    )
    table = build_table(load_results(tmp_path))
    assert {row[0].text: row[2].mark for row in table.rows} == {"rtn": "tied", "ptq4dit": "", "q_dit": "best"}


def test_without_an_error_bar_nothing_is_tied(tmp_path):
    write(
        tmp_path,
        record("fp", "w16a16", {"sqnr": metric(40.0, 0.4)}),
        record("rtn", "w8a8", {"sqnr": metric(40.0, None)}),
        record("q_dit", "w8a8", {"sqnr": metric(40.1, 0.4)}),
        record("ptq4dit", "w8a8", {"sqnr": metric(float("inf"), None)}),
        record("tq_dit", "w8a8", {"sqnr": metric(float("inf"), None)}),
    )
    marks = {row[0].text: row[2].mark for row in build_table(load_results(tmp_path)).rows}
    assert marks == {"full precision": "", "rtn": "", "q_dit": "", "ptq4dit": "best", "tq_dit": "best"}


def test_a_value_without_a_rival_is_not_best(tmp_path):
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("rtn", "w4a8", {"sqnr": metric(21.0)}))
    assert {cell.mark for row in build_table(load_results(tmp_path)).rows for cell in row} == {""}


def test_a_row_that_leads_on_the_noise_that_both_have_is_not_beaten(tmp_path, monkeypatch):
    """The best mean is one of an easy seed alone, on which the other row is better."""
    write(tmp_path, record("rtn", "w8a8", {"sqnr": metric(40.0)}), record("q_dit", "w8a8", {"sqnr": metric(44.0)}))
    marks = []
    for gap in (3.0, -3.0, -0.1):
        monkeypatch.setattr("qdit.tables.marks.difference", lambda *_, gap=gap: (gap, 0.2))
        marks.append({row[0].text: row[2].mark for row in build_table(load_results(tmp_path)).rows}["rtn"])
    assert marks == ["tied", "", "tied"]
