"""Stage 5, retrain_rounds: the base retrained on masks that are searched again on the model as it learns.

Reads   the base classifier, its masks, the training and validation splits (on Codebirds also erasures of validation images, to watch).
Writes  OUT/model.safetensors, OUT/round-*.safetensors (Masks), OUT/rounds.json, OUT/history.jsonl. A killed run goes on.
Paper   none: the method is ours (everycause/training/rounds.py).  Cost: about 110 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import fingerprint, write_json
from everycause.data.codebirds import ValidationErasures
from everycause.data.sources import open_split
from everycause.device import code_fingerprint, start
from everycause.evaluation.faithfulness import round_metrics
from everycause.explanation.masks import Masks
from everycause.models import load, model_fingerprint
from everycause.params import read
from everycause.training.fit import Training
from everycause.training.rounds import CHECKPOINT, Progress, keep, rounds, take_up
from everycause.training.rows import ROUNDS, Recipe, Upstream
from stages.entry import recorded, run


def main(seed: int, base: Path, masks: Path, out: Path) -> None:
    """Retrain the base classifier in rounds of search and training.

    Args:
        seed: Seed of order, augmentation and backgrounds.
        base: Folder of the base classifier.
        masks: Folder of its masks.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "masks", "background", "loss", "retraining", "rounds")
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    train, validation = (open_split(params.data, name, params.run.threads) for name in ("train", "validation"))
    upstream = Upstream(classifier, None, Masks.load(masks, model, train.identity), train)
    recipe = Recipe(params.data, params.masks, params.background, params.loss, 0.0, params.run.threads)
    used = [section.model_dump_json() for name, section in vars(params).items() if name != "tracking"]
    key = fingerprint(model, train.identity, str(seed), code_fingerprint(), *sorted(masks.glob("*.safetensors")), *used)
    with recorded(f"retrain/{ROUNDS}", params, out, seed, device, train.identity, resume=key) as (folder, record):
        erasures = ValidationErasures(params.data, params.run.threads) if params.data.code is not None else None
        training = Training(classifier, train, validation, params.retraining, seed, ROUNDS)
        kept = take_up(folder, training)
        if not kept.measures:
            kept.measures.append(
                (round_metrics(0, classifier, None, params.data, erasures, params.run.threads, seed), 0)
            )
        for measures, step in kept.measures:
            record(measures, step)
        for done in rounds(training, upstream, recipe, params.rounds, kept.masks):
            watched = round_metrics(
                done.number, classifier, done.masks, params.data, erasures, params.run.threads, seed
            )
            new = [*((epoch.measures, epoch.number) for epoch in done.epochs), (watched, training.epoch)]
            for one in new:
                record(*one)
            kept = Progress([*kept.masks, done.masks], [*kept.measures, *new])
            keep(folder, training, kept, model, train.identity)
        write_json(folder / "rounds.json", [measures for measures, _ in kept.measures if "round/round" in measures])
        classifier.save(folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
