"""adopt: write the values that a sweep proposed into params.yaml (`make adopt`), a diff to look at and commit."""

import sys
from pathlib import Path

from everycause.tuning.report import adopt
from stages.entry import run


def main(proposal: Path = Path("reports/tuning/best_params.yaml"), params: Path = Path("params.yaml")) -> None:
    """Adopt the proposal.

    Args:
        proposal: What `make sweep` wrote.
        params: The file to change.
    """
    changed = adopt(proposal, params)
    for path, (before, now) in changed.items():
        sys.stdout.write(f"{path}: {before} → {now}\n")
    what, them = (f"{len(changed)} values", "them") if len(changed) != 1 else ("1 value", "it")
    sys.stdout.write(f"{what} changed in {params}: `git diff {params}` shows {them}, `dvc repro` uses {them}\n")


if __name__ == "__main__":
    run(main)
