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
