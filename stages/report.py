"""Stage 9, report: tables and figures from what the other stages stored.

Reads   all evaluations; of the first seed also what was found out about filters, masks and errors.
Writes  OUT/results.md, OUT/table.md, OUT/metrics.json, OUT/recall_by_class.csv, OUT/*.png.
Paper   the rows are those of specs/training.md.  Cost: about 25 s on two cores.
"""

from pathlib import Path

import pandas as pd

from everycause import tracking
from everycause.artifacts import atomic_folder, write_json
from everycause.data.sources import open_split
from everycause.device import start
from everycause.params import read
from everycause.reporting import figures, tables
from everycause.reporting import pictures as concepts
from everycause.reporting.page import Explained, document
from everycause.reporting.results import Results
from stages.entry import run


def main(artifacts: Path, out: Path) -> None:
    """Write the report.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
    """
    params = read("seeds", "evaluated", "run", "tracking", "data", "filters", "background", "evaluation")
    seed, threshold = params.seeds[0], params.filters.detection_frequency_threshold
    start(params.run, seed)
    train = open_split(params.data, "train", params.run.threads)
    results = Results.load(artifacts / "evaluation", params.evaluated, params.seeds)
    explained = Explained.load(artifacts, seed, results.rows, train)
    drawn = explained.drawn(
        results,
        train,
        params.data,
        params.background,
        params.filters,
        params.evaluation.corruptions,
        params.run.threads,
    )
    with (
        atomic_folder(out) as folder,
        tracking.run("report", params.tracking, {"stage": "report"}, {"rows": ",".join(results.rows)}) as record,
    ):
        for name, figure in drawn.items():
            figures.save(figure, folder / name)
        folder.joinpath("table.md").write_text(tables.main_table(results) + "\n")
        folder.joinpath("results.md").write_text(document(results, explained, params.data.code, threshold, list(drawn)))
        pd.DataFrame(
            {row: concepts.recalls(results, row, "test") for row in results.rows}, index=train.class_names
        ).to_csv(folder / "recall_by_class.csv")
        write_json(folder / "metrics.json", results.means())
        record.artifacts(folder)


if __name__ == "__main__":
    run(main)
