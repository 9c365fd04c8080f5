"""Samples of every method side by side: a row per method, a column per noise and class, full precision on top."""

import sys

from matplotlib.figure import Figure

from qdit.plots.study import Study, images
from qdit.plots.tiles import strips, tiles

COLUMNS, WIDTH = 8, 64  # samples a method, and pixels of each


def side_by_side(study: Study, bits: str) -> Figure | None:
    """Draw samples of all methods at one bit-width, on the noise of sample 0, 1, … of the run with the first seed.

    Runs that keep no images (of an earlier version, or cleared) are named on stderr and left out; None if all are.
    """
    rows, captions, without, columns = [], None, [], COLUMNS
    given = {"full precision": study.full} if study.full is not None else {}
    for name, row in {**given, **study.at(bits)}.items():
        if (found := images(row)) is None:
            without.append(name)
            continue
        shown, texts = found
        captions = captions or texts[:COLUMNS] or None
        if shown.ndim == 5:
            shown, columns = strips(shown, WIDTH), 1
        rows.append((name, shown[:COLUMNS], "black" if row is study.full else study.colour(row)))
    if without:
        print(f"samples at {bits}: no images of {', '.join(without)}; run these again to have them", file=sys.stderr)
    shapes = [shown.shape for _, shown, _ in rows]
    if not rows or len(set(shapes)) > 1:
        return None
    return tiles(rows, captions, columns, WIDTH if columns > 1 else None)
