"""The floor of a distribution metric: what real images score against the reference, at the same number of samples.

At a few hundred or thousand samples most of an FID is the estimator's bias; a model cannot be expected below the floor.
The file `qdit/assets/<dataset>/floor-<extractor>.json` is made with the reference statistics:
`{"floor": {"1024": {"fid_lite0": {"mean": 59.6, "std": 2.0}, …}}}`.
"""

import json

from qdit.assets import ASSETS
from qdit.storage import names
from qdit.tables.quantity import stem

LABEL = "real data"


def floor(metric: str, dataset: str | None, n: float) -> tuple[float, float | None] | None:
    """Return mean and standard deviation of a metric of `n` real images, or None where nobody measured them."""
    extractor = metric[len(stem(metric)) :].removeprefix("_")
    path = ASSETS / str(dataset) / f"floor-{extractor}.json"
    if not extractor or not names.fits(dataset) or not names.fits(extractor) or not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))["floor"].get(str(int(n)), {}).get(metric)
    return None if values is None else (values["mean"], values.get("std"))
