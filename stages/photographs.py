"""photographs: tables, figures and pages of what was measured on photographs.

Reads   ARTIFACTS/cue_conflict/*/seed-*/shape_bias.csv, ARTIFACTS/imagenet_samples, and the evaluations of a run of
        profiles/pacs.yaml; those that are there.
Writes  OUT/{cue_conflict,imagenet_samples}.{csv,png,md} and OUT/pacs.{csv,md}; what was not measured stays as it is.
Paper   arXiv 1811.12231 (shape bias), 2504.00470 (LIMA).  Cost: seconds.
"""

from pathlib import Path

import pandas as pd

from everycause.artifacts import read_json
from everycause.errors import UserError
from everycause.reporting.figures import save
from everycause.reporting.photographs import (
    accuracy_table,
    samples_page,
    selector_figure,
    selector_table,
    shape_bias_figure,
    shape_bias_page,
    shifts_page,
)
from everycause.reporting.results import REFERENCE, Results
from everycause.training.rows import ROWS
from stages.entry import run


def main(
    artifacts: Path = Path("artifacts"), out: Path = Path("reports/photographs"), pacs: Path | None = None
) -> None:
    """Draw what is there.

    Args:
        artifacts: Folder of the artifacts.
        out: Folder to write.
        pacs: The folder artifacts/evaluation of a run of profiles/pacs.yaml.
    """
    biases, samples = sorted(artifacts.glob("cue_conflict/*/seed-*/shape_bias.csv")), artifacts / "imagenet_samples"
    if not biases and not samples.is_dir() and pacs is None:
        raise UserError(f"'{artifacts}' says nothing of photographs: run make cue-conflict or make imagenet-samples")
    out.mkdir(parents=True, exist_ok=True)
    if biases:
        table = pd.concat([pd.read_csv(file) for file in biases])
        table.to_csv(out / "cue_conflict.csv", index=False, float_format="%.5f")
        save(shape_bias_figure(table), out / "cue_conflict.png")
        write(out / "cue_conflict.md", "\n".join(shape_bias_page(table)))
    if pacs is not None:
        results = evaluated(pacs)
        accuracy_table(results).to_csv(out / "pacs.csv", index=False, float_format="%.5f")
        write(out / "pacs.md", "\n".join(shifts_page(results, "PACS: trained on photographs")))
    if samples.is_dir():
        described = read_json(samples / "run.json", "imagenet_samples")
        table = selector_table(pd.read_csv(samples / "rankings.csv"), pd.read_csv(samples / "searches.csv"))
        table.to_csv(out / "imagenet_samples.csv", index=False, float_format="%.5g")
        save(selector_figure(table), out / "imagenet_samples.png")
        write(out / "imagenet_samples.md", "\n".join(samples_page(table, described)))


def evaluated(folder: Path) -> Results:
    """The evaluations below a folder: every row that is there, with the seeds of the first.

    Raises:
        UserError: there is none, or a row lacks a seed.
    """
    rows = [row for row in ("base", *ROWS) if (folder / row).is_dir()]
    seeds = sorted(int(place.name.removeprefix("seed-")) for place in folder.glob("base/seed-*"))
    if REFERENCE not in rows or not seeds:
        raise UserError(f"--pacs: '{folder}' holds no evaluation of base and {REFERENCE}: run dvc repro first")
    return Results.load(folder, rows, seeds)


def write(file: Path, text: str) -> None:
    """A page, with the end of its last line."""
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
