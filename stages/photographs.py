"""photographs: tables, figures and pages of what was measured on photographs.

Reads   ARTIFACTS/cue_conflict/*/seed-*/shape_bias.csv and ARTIFACTS/imagenet_samples, those that are there.
Writes  OUT/cue_conflict.{csv,png,md} and OUT/imagenet_samples.{csv,png,md}; what was not measured stays as it is.
Paper   arXiv 1811.12231 (shape bias), 2504.00470 (LIMA).  Cost: seconds.
"""

from pathlib import Path

import pandas as pd

from everycause.artifacts import read_json
from everycause.errors import UserError
from everycause.reporting.figures import save
from everycause.reporting.photographs import (
    samples_page,
    selector_figure,
    selector_table,
    shape_bias_figure,
    shape_bias_page,
)
from stages.entry import run


def main(artifacts: Path = Path("artifacts"), out: Path = Path("reports/photographs")) -> None:
    """Draw what is there.

    Args:
        artifacts: Folder of the artifacts.
        out: Folder to write.
    """
    biases, samples = sorted(artifacts.glob("cue_conflict/*/seed-*/shape_bias.csv")), artifacts / "imagenet_samples"
    if not biases and not samples.is_dir():
        raise UserError(f"'{artifacts}' says nothing of photographs: run make cue-conflict or make imagenet-samples")
    out.mkdir(parents=True, exist_ok=True)
    if biases:
        table = pd.concat([pd.read_csv(file) for file in biases])
        table.to_csv(out / "cue_conflict.csv", index=False, float_format="%.5f")
        save(shape_bias_figure(table), out / "cue_conflict.png")
        write(out / "cue_conflict.md", "\n".join(shape_bias_page(table)))
    if samples.is_dir():
        described = read_json(samples / "run.json", "imagenet_samples")
        table = selector_table(pd.read_csv(samples / "rankings.csv"), pd.read_csv(samples / "searches.csv"))
        table.to_csv(out / "imagenet_samples.csv", index=False, float_format="%.5g")
        save(selector_figure(table), out / "imagenet_samples.png")
        write(out / "imagenet_samples.md", "\n".join(samples_page(table, described)))


def write(file: Path, text: str) -> None:
    """A page, with the end of its last line."""
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
