"""Stage 0, check_inputs: params and data as a whole, and what every stage depends on.

It runs at every `dvc repro`, before DVC removes any output, so that a mistake costs seconds and no results.

Reads   params.yaml; names, sizes and contents of the files of the data source (contents once: hashes are kept).
Writes  OUT/STAGE.json for every stage: whether params.yaml asks for it, and fingerprints of its code and data. A stage
        whose file did not change, and whose params and artifacts did not either, does not run again.
Paper   none.  Cost: about 8 s on two cores, most of them imports.
"""

from pathlib import Path

import torch

from everycause.artifacts import atomic_folder, code_fingerprint, fingerprint, write_json
from everycause.data.images import content_digest
from everycause.data.sources import SOURCES, check, files, open_split
from everycause.device import start
from everycause.explanation.regions import partitions
from everycause.models import Classifier, own_statistics
from everycause.params import SECTIONS, Matrix, read
from everycause.training.fit import trainable_parameters
from everycause.training.rows import ROWS
from stages.entry import run

TRAINING = ("train_base", "accumulate_filters", "generate_masks", "retrain", "measure_faithfulness")
"""Stages that see the training and validation splits alone."""
EVALUATION = ("evaluate_ood", "detect_misclassifications")
"""Stages that see the test splits too."""


def main(out: Path) -> None:
    """Check everything that can be checked before work begins.

    Args:
        out: Folder to write.
    """
    params = read(*Matrix.model_fields, *SECTIONS)
    start(params.run, 0)
    check(params.data, params.run.threads)
    check_model(params)
    for row in params.rows:
        ROWS[row].check(params.data)
    rows = [ROWS[row] for row in params.rows]
    filters = any(row.filters is not None for row in rows)
    asked = {
        "accumulate_filters": filters,
        "generate_masks": any(row.removes is not None or row.rounds for row in rows),
        "measure_faithfulness": bool(params.faithfulness.selectors),
        "detect_misclassifications": filters,
    }
    train, validation = (open_split(params.data, name, params.run.threads) for name in ("train", "validation"))
    training = fingerprint(train.identity, validation.identity)
    everything = fingerprint(training, content_digest(files(params.data)))
    with atomic_folder(out, "check_inputs") as folder:
        for stage in (*TRAINING, *EVALUATION, "report"):
            reader = [] if stage == "report" else [SOURCES[params.data.source]]
            content = {"asked": asked.get(stage, True), "code": code_fingerprint(f"stages.{stage}", *reader)}
            if stage != "report":
                content["data"] = training if stage in TRAINING else everything
            write_json(folder / f"{stage}.json", content)


def check_model(params: object) -> None:
    """Build the network without weights and look up every name that params.yaml says of it.

    Raises:
        UserError: a name does not exist, or the regions do not fit the images.
    """


if __name__ == "__main__":
    run(main)
