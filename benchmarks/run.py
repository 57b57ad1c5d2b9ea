"""Run every benchmark: one line per measure, `name: value`, and benchmarks/results.json under the same names."""

import argparse
import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Measure, print, write."""
    names = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=[name.removeprefix("bench_") for name in names],
        help="one benchmark; results.json keeps the others' figures",
    )
    only = parser.parse_args().only
    file = FOLDER / "results.json"
    results = json.loads(file.read_text()) if only and file.is_file() else {}
    for name in names:
        if only in (None, name.removeprefix("bench_")):
            for measure, value in importlib.import_module(f"benchmarks.{name}").measures():
                results[measure] = round(value, 4)
                sys.stdout.write(f"{measure}: {value:.4g}\n")
                sys.stdout.flush()
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    partial.rename(file)


if __name__ == "__main__":
    main()
