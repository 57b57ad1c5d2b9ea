"""The published page: one HTML file from all that stands in reports/.

Reads   reports/ alone: the report of the published run, the study, the map, and what else was measured.
Writes  REPORTS/paper.md (published figures beside ours) and OUT, one file that needs no network.
Paper   none.  Cost: about 5 s.
"""

from pathlib import Path

from everycause.reporting.published import paper
from everycause.reporting.site import page
from stages.entry import run, written


def main(reports: Path = Path("reports"), out: Path = Path("reports/index.html")) -> None:
    """Write the page.

    Args:
        reports: Folder of all reports.
        out: File to write.
    """
    written(reports / "paper.md", paper(reports))
    written(out, page(reports / "results", reports, out.parent))


if __name__ == "__main__":
    run(main)
