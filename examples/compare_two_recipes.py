"""Compare two recipes on the same noise: the difference sample by sample has a far smaller error than either mean.

python examples/compare_two_recipes.py
"""

import qdit
from qdit.tables import render

N, STEPS = 64, 20
ONE, OTHER = "rtn", "quarot"
PROTOCOL = [f"num_samples={N}", f"sampler.steps={STEPS}", "eval=paired", "study=two_recipes"]

# Each is a run like those of the command line: a second call finds it finished, an interrupted one goes on.
for name in (ONE, OTHER):
    qdit.run(f"quantizer={name}", "bits=w4a8", *PROTOCOL)

runs = qdit.results("runs", "two_recipes")
print(render(qdit.table(runs, metrics=["sqnr", "psnr"]), "markdown"))

# Sample i of both has the same noise and class, so what makes a sample easy or hard cancels in their difference.
one, other = runs[runs.quantizer == ONE], runs[runs.quantizer == OTHER]
gap, error = qdit.difference(other, one, metric="sqnr")
apart = (one.sqnr_stderr.iloc[0] ** 2 + other.sqnr_stderr.iloc[0] ** 2) ** 0.5

print(f"{OTHER} - {ONE}: {gap:.2f} ± {error:.2f} dB paired; as if independent the error would be ± {apart:.2f}")
verdict = "cannot be told apart" if abs(gap) < 2 * error else f"{OTHER if gap > 0 else ONE} is better"
print(f"At two standard errors: {verdict}.")
