"""Stage 0, check_inputs: params and data as a whole, and what every stage depends on.

It runs at every `dvc repro`, before DVC removes any output, so that a mistake costs seconds and no results.

Reads   params.yaml; the files of the data source (their contents once: what was found is remembered in .cache).
Writes  OUT/STAGE.json for every stage: whether params.yaml asks for it, and fingerprints of its code and data. A stage
        whose file did not change, and whose params and artifacts did not either, does not run again.
Paper   none.  Cost: about 8 s on two cores, most of them imports.
"""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch

from everycause.artifacts import atomic_folder, code_fingerprint, fingerprint, write_json
from everycause.data.digests import content_digest
from everycause.data.images import Statistics
from everycause.data.sources import SOURCES, check, files, open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.explanation.regions import partitions
from everycause.models import Classifier
from everycause.params import SECTIONS, Matrix, read
from everycause.training.fit import trainable_parameters
from everycause.training.rows import ROWS
from stages.entry import run
from stages.generate_masks import check_selector

TRAINING = ("train_base", "accumulate_filters", "generate_masks", "retrain", "measure_faithfulness")
"""Stages that see the training and validation splits alone."""
EVALUATION = ("evaluate_ood", "detect_misclassifications")
"""Stages that see the test splits too."""


def main(out: Path) -> None:
    """Check everything that can be checked before work begins, and write what every stage depends on.

    Args:
        out: Folder to write.
    """
    params = read(*Matrix.model_fields, *SECTIONS)
    start(params.run, 0)
    check(params.data, params.run.threads, product(params.evaluation.corruptions, params.evaluation.severities))
    unread = params.data.model_copy(update={"memory_mib": 0})
    train, validation = (open_split(unread, name, params.run.threads) for name in ("train", "validation"))
    asked = asked_for(params)
    check_network(params, train.class_names, asked["accumulate_filters"])
    training = fingerprint(train.identity, validation.identity)
    content = {stage: training for stage in TRAINING}
    content |= dict.fromkeys(EVALUATION, fingerprint(training, content_digest(files(params.data))))
    with atomic_folder(out, "check_inputs") as folder:
        for stage in (*TRAINING, *EVALUATION):
            code = code_fingerprint(f"stages.{stage}", SOURCES[params.data.source])
            needs = {"asked": asked.get(stage, True), "code": code, "data": content[stage]}
            write_json(folder / f"{stage}.json", needs)
        write_json(folder / "report.json", {"asked": True, "code": code_fingerprint("stages.report")})


def asked_for(params: SimpleNamespace) -> dict[str, bool]:
    """Stage → whether anything in params.yaml needs what it makes.

    Raises:
        UserError: a row cannot be made from these data.
    """
    rows = [ROWS[name] for name in params.rows]
    for row in rows:
        row.check(params.data)
    removes = any(row.removes is not None for row in rows)
    if removes:
        check_selector(params.masks)
    filters = any(row.filters is not None for row in rows)
    return {
        "accumulate_filters": filters,
        "generate_masks": removes,
        "measure_faithfulness": bool(params.faithfulness.selectors),
        "detect_misclassifications": filters,
    }


def check_network(params: SimpleNamespace, class_names: tuple[str, ...], filters: bool) -> None:
    """Build the network without its weights and look up everything that params.yaml says about it.

    Raises:
        UserError: a name does not exist, the network has no filters although they are asked for, or an image is too
            small for it or for the regions.
    """
    size = params.data.image_size
    partitions(params.masks.partition, torch.zeros(1, 3, size, size, dtype=torch.uint8), params.masks.regions)
    drawn = params.model.model_copy(update={"pretrained": False})
    classifier = Classifier(drawn, class_names, size, Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).eval()
    for section in (params.training, params.retraining):
        trainable_parameters(classifier, section.trainable)
    try:
        with torch.inference_mode():
            classifier(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{params.model.name} cannot take images of {size} pixels ({' '.join(str(error).split())[:120]}): "
            "raise the image_size of the data source, or name another network"
        ) from error
    if filters:
        classifier.head()


if __name__ == "__main__":
    run(main)
