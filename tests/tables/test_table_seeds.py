"""Several seeds of a row: mean, spread, standard error."""

import pytest
from helpers.fake_records import column, failed, metric, record, write

from qdit.tables import build_table, load_results
from qdit.tables.summary import _metric, summarise


@pytest.fixture
def seeded(tmp_path):
    records = [record("rtn", "w8a8", {"sqnr": metric(v, 0.1)}, seed=s) for s, v in enumerate((39.0, 40.0, 41.0))]
    records += [record("fp", "w16a16", {"is_lite0": metric(9.0)}, seed=s) for s in range(3)]
    records.append(failed("q_dit", "w8a8", "out of memory", seed=1))
    records.append(record("q_dit", "w8a8", {"sqnr": metric(43.0, 0.1)}, seed=0))
    return write(tmp_path / "runs", *records)


def test_seeds_become_a_mean_with_its_standard_error(seeded):
    table = build_table(load_results(seeded), metrics=["sqnr"])
    assert column(table, "SQNR")[("rtn", "w8a8")] == "40.0 ± 0.6"
    assert "± is one standard error, of means with the spread between seeds in it. Mean over 3 seeds: rtn." in (
        " ".join(table.lines)
    )
    assert "seeds 0, 1, 2" in table.lines[-1]
    partly = next(row for row in table.rows if row[0].text == "q_dit")
    assert (partly[2].text, partly[2].notes) == ("43.0 ± 0.1", (1,))
    assert table.footnotes == ["q_dit-w8a8, seed 1: out of memory"]


def test_bits_of_a_method_that_alone_were_repeated_are_named(tmp_path):
    records = [record("rtn", "w4a8", {"sqnr": metric(v, 0.1)}, seed=s) for s, v in enumerate((19.0, 20.0, 21.0))]
    runs = write(tmp_path / "runs", *records, record("rtn", "w8a8", {"sqnr": metric(40.0, 0.1)}))
    lines = build_table(load_results(runs), metrics=["sqnr"], cols="bits").lines
    assert "over 3 seeds: rtn at w4a8." in " ".join(lines)


def test_recipes_that_were_repeated_at_the_same_bits_are_named_together_and_bits_once(tmp_path):
    """Also where a further key of the rows gives several of the same bits."""

    def repeated(name, bits, **config):
        several = enumerate((19.0, 20.0, 21.0))
        return [
            record(name, bits, {"sqnr": metric(v, 0.1)}, seed=s, config={"rounding.name": "a"} | config)
            for s, v in several
        ]

    records = repeated("rtn", "w4a8") + repeated("rtn", "w4a8", **{"rounding.name": "b"}) + repeated("q_dit", "w4a8")
    alone = [record(name, "w8a8", {"sqnr": metric(40.0, 0.1)}) for name in ("rtn", "q_dit")]
    lines = build_table(load_results(write(tmp_path / "runs", *records, *alone)), metrics=["sqnr"]).lines
    assert "over 3 seeds: q_dit, rtn at w4a8." in " ".join(lines)


def test_seeds_without_the_metric_do_not_make_its_error_smaller():
    having = [record("rtn", "w8a8", {"sqnr": metric(v, 1.0)}, seed=s) for s, v in enumerate((39.9, 40.1))]
    lacking = [record("rtn", "w8a8", {"is_lite0": metric(9.0)}, seed=s) for s in (2, 3)]

    def error(records):
        return _metric([{"seed": r["seed"]} | {f"sqnr{k}": v for k, v in _flat(r).items()} for r in records], "sqnr")

    assert error(having + lacking)["sqnr_stderr"] == error(having)["sqnr_stderr"] == pytest.approx(0.5**0.5)


def test_the_note_counts_the_seeds_that_have_the_metric(tmp_path):
    """A run without it is not in the mean, and a row of one such run is none."""
    both, one = {"sqnr": metric(40.0, 0.1), "fid": metric(9.0, 0.5, higher=False)}, {"sqnr": metric(39.0, 0.1)}
    made = [record("rtn", "w8a8", both if seed < 2 else one, seed=seed) for seed in range(3)]
    made += [record("q_dit", "w8a8", both if seed < 1 else one, seed=seed) for seed in range(3)]
    results = load_results(write(tmp_path, *made))

    def said(*metrics):
        return " ".join(build_table(results, metrics=metrics).lines)

    assert "Mean over 3 seeds. Protocol" in said("sqnr")
    assert "over 2 seeds: rtn." in said("fid")
    assert "3 seeds" not in said("fid")
    assert "SQNR (dB) ↑: mean over 3 seeds. FID ↓: mean over 2 seeds: rtn." in said("sqnr", "fid")


def test_one_run_that_has_a_metric_has_its_own_error(tmp_path):
    made = [record("rtn", "w8a8", {"sqnr": metric(40.0, 0.1)} if seed < 1 else {}, seed=seed) for seed in range(3)]
    table = build_table(load_results(write(tmp_path, *made)), metrics=["sqnr"])
    assert column(table, "SQNR")[("rtn", "w8a8")] == "40.0 ± 0.1"
    assert "± is one standard error." in table.lines[0]
    assert "seeds" not in table.lines[0].replace("seed 0", "")


def test_full_precision_is_named_where_it_alone_is_a_mean(tmp_path):
    made = [record("fp", "w16a16", {"is_lite0": metric(9.0 + seed, 0.2)}, seed=seed) for seed in range(2)]
    made.append(record("rtn", "w8a8", {"is_lite0": metric(8.0, 0.2, delta=-1.0, delta_stderr=0.1)}))
    results = load_results(write(tmp_path, *made))
    line = build_table(results, metrics=["is_lite0", "is_lite0_delta"]).lines[0]
    assert "with the spread between seeds in it. Mean over 2 seeds: full precision." in line
    alone = build_table(results, metrics=["is_lite0_delta"]).lines[0]
    assert "Mean over" not in alone
    assert "± is one standard error." in alone


def _flat(made):
    """The columns of a record's SQNR, as tables have them; none if it lacks it."""
    own = made["metrics"].get("sqnr")
    return {} if own is None else {"": own["value"], "_stderr": own["stderr"], "_n": own.get("n")}


def test_seeds_all_is_a_row_each(seeded):
    table = build_table(load_results(seeded), metrics=["sqnr"], seeds="all")
    assert table.header[:3] == ["quantizer", "bits", "seed"]
    values = column(table, "SQNR")
    assert [values[("rtn", "w8a8", str(seed))] for seed in range(3)] == ["39.0 ± 0.1", "40.0 ± 0.1", "41.0 ± 0.1"]
    assert values[("q_dit", "w8a8", "1")] == "—"


def test_calibration_seeds_are_seeds(tmp_path):
    for seed, value in enumerate((20.0, 22.0)):
        write(tmp_path, record("q_dit", "w4a8", {"sqnr": metric(value)}, config={"calibration.seed": seed}))
    assert column(build_table(load_results(tmp_path)), "SQNR") == {("q_dit", "w4a8"): "21.0 ± 1.0"}
    split = build_table(load_results(tmp_path), seeds="all")
    assert split.header[:4] == ["quantizer", "bits", "seed", "calibration.seed"]


def test_seeds_that_share_their_prompts_share_the_error_of_these(tmp_path):
    """Which the mean of seeds does not lower; that of classes, which are drawn anew, it does."""
    prompts = {"dataset.file": "captions.txt"}
    for study, config in (("classes", {}), ("prompts", prompts)):
        for seed, value in enumerate((20.0, 20.1, 20.2, 20.1)):
            write(tmp_path, record("rtn", "w4a8", {"sqnr": metric(value, 0.8)}, seed=seed, study=study, config=config))
    shown = {name: column(build_table(load_results(tmp_path, name)), "SQNR") for name in ("classes", "prompts")}
    frames = {name: summarise(load_results(tmp_path, name), ["quantizer"]).rows[0] for name in shown}
    assert frames["classes"]["sqnr_stderr"] == pytest.approx(0.4)
    assert frames["prompts"]["sqnr_stderr"] == pytest.approx(0.8)
