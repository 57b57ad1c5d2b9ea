"""address: the address of the runs table in the MLflow UI (`make ui` prints it)."""

import sys

from everycause import tracking
from everycause.params import read
from stages.entry import run


def main(port: int = 5000) -> None:
    """Print the address of the pipeline's runs.

    Args:
        port: Port of the UI.
    """
    number = tracking.experiment_id(read("tracking").tracking.experiment)
    sys.stdout.write(f"http://127.0.0.1:{port}/#/experiments/{number}/runs?workflowType=machine_learning\n")


if __name__ == "__main__":
    run(main)
