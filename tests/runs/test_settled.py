"""Whether a finished record answers for what is asked now."""

from contextlib import nullcontext

import pytest

from qdit.errors import UserError
from qdit.runs import settled
from qdit.storage.run_folder import RunDir


@pytest.mark.parametrize(
    ("made", "executed", "asked", "refused"),
    [
        (None, "int8", "auto", False),
        (None, "int8, simulated", "int8", False),
        (None, "int8, simulated", "simulated", True),
        (None, "simulated", "int8", True),
        ({"execution": "int8"}, "simulated", "int8", False),  # it has no layer that multiplies integers
        ({"execution": "int8"}, "int8", "simulated", True),
        ({"execution": "simulated"}, "simulated", "auto", False),
    ],
)
def test_only_an_execution_that_is_demanded_has_to_be_a_finished_records(
    made, executed, asked, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr(settled, "run_dir", lambda config: RunDir(tmp_path))
    record = {"cost": {"executed": executed}} | ({"made": made} if made else {})
    config = {"execution": asked, "scope": {"roles": ["qkv"], "include": []}}
    with pytest.raises(UserError, match="execution=auto") if refused else nullcontext():
        settled.check_execution(record, config)


def test_a_record_that_holds_all_loses_the_failure_to_extend_it(tmp_path):
    where = RunDir(tmp_path)
    whole = {"schema": 1, "status": "done", "name": "rtn", "metrics": {}}
    where.save_result(whole)
    before = (tmp_path / "result.json").read_bytes()
    assert settled.without_error(where, where.result() or {}) == where.result()
    failed = where.save_result((where.result() or {}) | {"update_error": "no such device", "error_kind": "user"})
    assert "update_error" not in settled.without_error(where, failed)
    assert (tmp_path / "result.json").read_bytes() == before
    where.save_result(whole | {"update_error": "no such device", "error_kind": "user"})
    with where.lock():  # another process writes the record
        assert settled.without_error(where, where.result() or {}) == where.result()


def test_a_finished_run_is_told_without_the_failure_to_extend_it(tmp_path, monkeypatch):
    where = RunDir(tmp_path)
    saved = where.save_result(
        {"schema": 1, "status": "done", "run_id": "aa", "update_error": "no", "error_kind": "user"}
    )
    monkeypatch.setattr(settled, "run_dir", lambda config: where)
    monkeypatch.setattr(settled, "settled", lambda config: saved)
    logger = {"_target_": "qdit.tracking.NoTracker"}
    [record] = settled.finished([{"overwrite": False, "logger": logger}]) or []
    assert "update_error" not in record
    assert "update_error" not in (where.result() or {})
