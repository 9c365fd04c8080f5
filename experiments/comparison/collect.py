"""Keep what tables, figures and notebooks read of a study: records, values of single samples and thumbnails.

    python experiments/comparison/collect.py [--runs-dir runs] [--study methods]
    python experiments/comparison/collect.py --add         # beside the runs that are there
    python experiments/comparison/collect.py --digests     # of what is there, after a change by hand

Copies the finished runs of the study into `results/<study>/` beside this file, in the layout of a runs folder, so that
`qdit-table --runs-dir experiments/comparison/results` reads them as it reads `runs`. Beside them stands `digests.json`,
with which `qdit-table` names a record that is not what was collected.
"""

import argparse
import shutil
from pathlib import Path

from qdit.storage.atomic import write_json
from qdit.storage.digest import sha256
from qdit.storage.reading import read_json
from qdit.storage.run_folder import IMAGES, VALUES
from qdit.storage.seal import DIGEST, sealed
from qdit.tables import load_results
from qdit.tables.collected import DIGESTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--study", default="methods")
    parser.add_argument("--add", action="store_true", help="keep the other runs that are there, and full precision")
    parser.add_argument("--digests", action="store_true", help="only write the digests of what is there again")
    arguments = parser.parse_args()
    kept = Path(__file__).with_name("results") / arguments.study
    if not arguments.digests:
        collect(arguments.runs_dir, arguments.study, kept, arguments.add)
    write_json(kept / DIGESTS, digests(kept))


def collect(runs_dir: str, study: str, kept: Path, add: bool) -> None:
    """Copy the finished runs of a study into `kept`, in the place of what is there, or beside it."""
    runs = load_results(runs_dir, study)
    if not add:
        shutil.rmtree(kept, ignore_errors=True)
    for folder in map(Path, runs[runs.status == "done"].folder):
        if add and folder.name.startswith("fp-") and (kept / folder.name).exists():
            continue
        for file in ("result.json", VALUES, IMAGES):
            if (folder / file).is_file():
                (kept / folder.name / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, kept / folder.name / file)
        without_places(kept / folder.name / "result.json")
    print(f"{(runs.status == 'done').sum()} runs, {(runs.status != 'done').sum()} left out: {kept}")


def without_places(file: Path) -> None:
    """Let a record say where runs and caches are by default, and not where they were on some machine."""
    record = read_json(file, "collect the runs again")
    config = record["config"] | {"runs_dir": "runs", "cache_dir": "cache"}
    if config != record["config"]:
        record["config"] = config
        write_json(file, sealed(record) if DIGEST in record else record)


def digests(kept: Path) -> dict[str, str]:
    """SHA-256 of every file of a study, by its path in it."""
    files = sorted(file for file in kept.glob("*/**/*") if file.is_file())
    return {file.relative_to(kept).as_posix(): sha256(file) for file in files}


if __name__ == "__main__":
    main()
