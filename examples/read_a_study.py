"""Read a study with pandas: the best method at each bit-width, what a bit is worth, what cannot be told apart.

python examples/read_a_study.py [FOLDER [STUDY]]            default: the comparison that is shipped in the repository
"""

import sys

import qdit

folder, study = (*sys.argv[1:], *("experiments/comparison/results", "methods")[len(sys.argv) - 1 :])

# A row a run; a column a metric (with _stderr, _n, _delta), a cost, and a key of the config by its dotted name.
runs = qdit.results(folder, study)
runs = runs[(runs.status == "done") & (runs.quantizer != "fp")]
print(f"{len(runs)} runs, {runs.quantizer.nunique()} recipes at {', '.join(runs.bits.unique())}\n")

# Seeds of the noise and of the calibration are averaged; protocols are never mixed.
assert runs.protocol.str.replace(r"seed=\d+", "", regex=True).nunique() == 1
means = runs.groupby(["bits", "quantizer"])[["sqnr", "sqnr_stderr", "model_mb", "gbops"]].mean()

print(means.sqnr.unstack("bits").round(1), "\n")
print("The best at each bit-width:")
print(means.loc[means.groupby("bits").sqnr.idxmax()].round(2), "\n")

# How much a choice explains: the spread between recipes that differ in it, at the same bits.
by_rounding = runs.groupby(["bits", runs["rounding._target_"].str.rsplit(".").str[-1]]).sqnr.agg(["mean", "count"])
print(by_rounding.round(1), "\n")

# Rivals of the best at the fewest bits, as far as their error bars say; `qdit.difference` compares sample by sample.
bits = min(runs.bits)
low = means.loc[bits].sort_values("sqnr", ascending=False)
best = low.iloc[0]
rivals = low[best.sqnr - low.sqnr < 2 * (best.sqnr_stderr**2 + low.sqnr_stderr**2) ** 0.5]
print(f"Within two standard errors of the best at {bits}: {', '.join(rivals.index)}")
