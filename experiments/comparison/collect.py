"""Keep what tables, figures over bits and notebooks read of a study: records and values of single samples, no weights.

    python experiments/comparison/collect.py [--runs-dir runs] [--study methods]

Copies the finished runs of the study into `results/<study>/` beside this file, in the layout of a runs folder, so that
`qdit-table --runs-dir experiments/comparison/results` reads them as it reads `runs`.
"""

import argparse
import shutil
from pathlib import Path

from qdit.store import VALUES
from qdit.tables import load_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--study", default="methods")
    arguments = parser.parse_args()
    runs = load_results(arguments.runs_dir, arguments.study)
    kept = Path(__file__).with_name("results") / arguments.study
    shutil.rmtree(kept, ignore_errors=True)
    for folder in map(Path, runs[runs.status == "done"].folder):
        for file in ("result.json", VALUES):
            if (folder / file).is_file():
                (kept / folder.name / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, kept / folder.name / file)
    print(f"{(runs.status == 'done').sum()} runs, {(runs.status != 'done').sum()} left out: {kept}")


if __name__ == "__main__":
    main()
