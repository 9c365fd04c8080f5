"""What `import qdit` offers in Python; the functions of the command line, for models that are in memory already.

Each is exported by `qdit` itself, which imports this package when one is first used.
"""

from qdit.api.adapters import embedded
from qdit.api.compose import design, recipe
from qdit.api.data import calibrate
from qdit.api.exports import export, targets
from qdit.api.judging import judge
from qdit.api.measures import cost, fidelity, policy, summary
from qdit.api.models import dequantize, full_precision, load, quantize, save
from qdit.api.records import difference, results, run, table

__all__ = [
    "calibrate",
    "cost",
    "dequantize",
    "design",
    "difference",
    "embedded",
    "export",
    "fidelity",
    "full_precision",
    "judge",
    "load",
    "policy",
    "quantize",
    "recipe",
    "results",
    "run",
    "save",
    "summary",
    "table",
    "targets",
]
