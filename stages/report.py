"""Stage 8, report: tables and figures from what the other stages stored.

Reads   artifacts/ alone: all evaluations; of the first seed also what was found about filters, masks and errors.
Writes  OUT/results.md, OUT/table.md, OUT/metrics.json, OUT/rows/ROW.json (what `dvc metrics show` shows),
        OUT/splits.csv (what `dvc plots show` draws), OUT/recall_by_class.csv, OUT/*.png, OUT/gallery.json with
        OUT/gallery/*.png, OUT/index.html (all of it as a page).
Paper   none.  Cost: about 20 s on two cores.
"""

from pathlib import Path

import matplotlib
import pandas as pd

from everycause import tracking
from everycause.artifacts import atomic_folder, write_json
from everycause.params import read
from everycause.reporting import figures, tables
from everycause.reporting.examples import write_examples
from everycause.reporting.page import document, drawn, texts
from everycause.reporting.results import Findings, Results
from everycause.reporting.site import page
from stages.entry import run

HEADLINE = ("test", "corruptions", "completeness")
"""Columns by which experiments on Codebirds are compared; on photographs, all columns of the main table."""


def main(artifacts: Path, out: Path) -> None:
    """Write the report.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
    """
    params = read("seeds", "evaluated", "faithfulness", "tracking")
    matplotlib.use("Agg")  # files alone; notebooks draw the same figures on their page
    results = Results.load(artifacts / "evaluation", params.evaluated, params.seeds)
    findings = Findings.load(artifacts, params.seeds[0], results.rows, params.faithfulness.rows)
    with (
        atomic_folder(out, "report") as folder,
        tracking.run("report", params.tracking, {"stage": "report"}, {"rows": ",".join(results.rows)}) as record,
    ):
        with figures.readable(texts(results, findings)):
            shown = drawn(results, findings)
            for name, figure in shown.items():
                figures.save(figure, folder / name)
        folder.joinpath("table.md").write_text(tables.main_table(results) + "\n")
        folder.joinpath("results.md").write_text(document(results, findings, list(shown)))
        recalls = {row: results.recalls(row, "test") for row in results.rows}
        pd.DataFrame(recalls, index=findings.class_names).to_csv(folder / "recall_by_class.csv")
        splits(results).to_csv(folder / "splits.csv", index=False)
        write_json(folder / "metrics.json", results.means())
        folder.joinpath("rows").mkdir()
        for row, measures in headlines(results).items():
            write_json(folder / "rows" / f"{row}.json", measures)
        write_examples(findings, folder)
        folder.joinpath("index.html").write_text(page(folder, None, folder), encoding="utf-8")
        record.artifacts(folder)


def splits(results: Results) -> pd.DataFrame:
    """Accuracy of every row on every split, for `dvc plots show`; corruptions all together."""
    metrics = [name for name in results.accuracy_metrics() if not name.startswith("accuracy/corruptions/")]
    lines = [
        (name.removeprefix("accuracy/"), row, round(float(results.values(row, name).mean()), 4))
        for name in metrics
        for row in results.rows
    ]
    return pd.DataFrame(lines, columns=pd.Index(["split", "row", "accuracy"]))


def headlines(results: Results) -> dict[str, dict[str, float]]:
    """Row → the few numbers by which experiments are compared, named like their columns; shares from 0 to 1."""
    metrics = tables.main_metrics(results)
    shown = {name: column for name, column in metrics.items() if column in HEADLINE or not results.has("completeness")}
    return {
        row: {column: round(float(results.values(row, name).mean()), 4) for name, column in shown.items()}
        for row in results.rows
    }


if __name__ == "__main__":
    run(main)
