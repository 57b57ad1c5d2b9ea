"""sync_tracking: send MLflow what it missed while it could not be reached (`make sync-tracking`)."""

import sys

from everycause import tracking
from everycause.processes import without_password
from stages.entry import run


def main() -> None:
    """Send every run that MLflow missed to MLFLOW_TRACKING_URI, or to the SQLite file of the repository."""
    sent, running = tracking.send_missed()
    sys.stdout.write(f"{sent} {'run was' if sent == 1 else 'runs were'} sent to ")
    sys.stdout.write(without_password(tracking.tracking_uri()))
    sys.stdout.write(f"; {running} still run, and can be sent when they have ended\n" if running else "\n")


if __name__ == "__main__":
    run(main)
