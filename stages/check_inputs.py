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

from everycause import weights
from everycause.artifacts import atomic_folder, code_fingerprint, fingerprint, write_json
from everycause.data.digests import content_digest
from everycause.data.images import Statistics
from everycause.data.sources import SOURCES, check, files, open_split
from everycause.device import check_batch, memory_mib, output_sizes, start
from everycause.errors import UserError
from everycause.explanation.prior_training import FILE, load_denoiser
from everycause.explanation.regions import partitions
from everycause.models import Classifier
from everycause.params import SECTIONS, Matrix, read
from everycause.training.optimizer import trainable_parameters
from everycause.training.rows import ROWS
from everycause.tuning.trial import check_plans
from stages.entry import PRIOR, run
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
    memory = memory_mib(start(params.run, 0))
    if params.data.memory_mib > memory:
        raise UserError(
            f"params.yaml: data.memory_mib is {params.data.memory_mib}, and this machine has {memory:,} MiB of memory: "
            "set it to half of that or less"
        )
    check_plans(params)
    check(params.data, params.run.threads, product(params.evaluation.corruptions, params.evaluation.severities))
    unread = params.data.model_copy(update={"memory_mib": 0})
    train, validation = (open_split(unread, name, params.run.threads) for name in ("train", "validation"))
    asked = asked_for(params)
    ranked_by = {params.masks.selector, *params.faithfulness.selectors, *(ROWS[name].removes for name in params.rows)}
    check_network(params, train.class_names, asked["accumulate_filters"] or "cell_swap" in ranked_by, memory)
    training = fingerprint(train.identity, validation.identity)
    content = {stage: training for stage in TRAINING}
    if params.model.pretrained and (file := weights.file_of(params.model.name, params.model.weights)) is not None:
        content["train_base"] = fingerprint(training, content_digest([file]))
    if params.background.source == "prior":
        load_denoiser(PRIOR, train)  # so that a missing one is found before any work
        content["retrain"] = fingerprint(training, content_digest([PRIOR / FILE]))
    content |= dict.fromkeys(EVALUATION, fingerprint(training, content_digest(files(params.data))))
    with atomic_folder(out, "check_inputs") as folder:
        for stage in (*TRAINING, *EVALUATION):
            code = code_fingerprint(f"stages.{stage}", SOURCES[params.data.source])
            needs = {"asked": asked.get(stage, True), "code": code, "data": content[stage]}
            write_json(folder / f"{stage}.json", needs)
        write_json(folder / "report.json", {"asked": True, "code": report_code()})


def report_code(template: Path = Path(weights.__file__).parent / "reporting" / "page.html.j2") -> str:
    """A hash of what the stage report does; the template of its page is a part of it."""
    return fingerprint(code_fingerprint("stages.report"), template)


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


def check_network(params: SimpleNamespace, class_names: tuple[str, ...], filters: bool, memory: int) -> None:
    """Build the network without its weights and look up everything that params.yaml says about it.

    Raises:
        UserError: a name does not exist, the network has no filters although they are asked for, an image is too small
            for it or for the regions, or a batch needs more than `memory` (in MiB).
    """
    size = params.data.image_size
    partitions(params.masks.partition, torch.zeros(1, 3, size, size, dtype=torch.uint8), params.masks.regions)
    if params.model.pretrained:
        weights.check(params.model.name, params.model.weights)
        if params.model.weights != weights.CACHE:  # whether they are in the cache matters to train_base alone
            weights.stored(params.model.name, params.model.weights, "model.weights")
    drawn = params.model.model_copy(update={"pretrained": False})
    classifier = Classifier(drawn, class_names, size, Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).eval()
    for section in (params.training, params.retraining):
        trainable_parameters(classifier, section.trainable)
    held = output_sizes(classifier.network)
    with torch.inference_mode():
        classifier(torch.zeros(1, 3, size, size))
    if filters:
        classifier.head()
    for name, one in (("training", sum(held) / 2), ("retraining", sum(held) / 2), ("masks", max(held))):
        check_batch(name, getattr(params, name).batch_size, one, memory)  # half: some layers work in place


if __name__ == "__main__":
    run(main)
