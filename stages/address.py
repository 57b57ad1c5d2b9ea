"""address: the address of the runs table in the MLflow UI (`make ui` prints it)."""

import json
import sys

from everycause import tracking
from everycause.errors import UserError
from everycause.params import read
from stages.entry import run

VIEW = "results"
MEASURES = (*tracking.RESULTS, "best/validation_completeness")
COLUMNS = [
    *(f"tags.`{tag}`" for tag in ("stage", "row", "seed", "world", "state")),
    *(f"metrics.`{name}`" for name in MEASURES),
]
"""Columns with which the runs table opens; what no run has does not appear."""
TABLE = {
    "selectedColumns": COLUMNS, "columnOrder": [], "columnWidths": {}, "runsExpanded": {}, "runsPinned": [],
    "runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False,
    "runListHidden": False, "isAccordionReordered": False, "useGroupedValuesInCharts": True, "hideEmptyCharts": True,
    "groupBy": None, "groupsExpanded": {}, "autoRefreshEnabled": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
    "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
}  # fmt: skip
"""The state of the table as MLflow's button "Share" stores it in a tag of the experiment, complete."""


def main(port: int = 5000) -> None:
    """Print the address of the pipeline's runs, on the server of MLFLOW_TRACKING_URI or on one of this machine.

    Args:
        port: Port of the UI on this machine.
    """
    sys.stdout.write(runs_page(read("tracking").tracking.experiment, port) + "\n")


def runs_page(experiment: str, port: int) -> str:
    """Address of the runs table of an experiment, opened with the columns that matter.

    Raises:
        UserError: the store cannot be reached or read, or its runs are not shown by MLflow's own UI.
    """
    uri = tracking.tracking_uri()
    if uri.startswith("databricks"):
        raise UserError(f"MLFLOW_TRACKING_URI is '{uri}': these runs are shown by that workspace, not by `make ui`")
    number = tracking.experiment_id(experiment)
    server = uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"
    page = f"{server}/#/experiments/{number}/runs?workflowType=machine_learning"
    stored = tracking.tag_experiment(number, f"mlflow.sharedViewState.{VIEW}", json.dumps(TABLE))
    return f"{page}&viewStateShareKey={VIEW}" if stored else page


if __name__ == "__main__":
    run(main)
