"""Stage 7, evaluate_ood: one model on the test split and on every shifted one.

Reads   a classifier and the test splits, which no other stage touches.
Writes  OUT/predictions.safetensors (the logits of every view), OUT/metrics.json, OUT/history.jsonl.
Paper   the protocols stand in reports/deviations.md.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import fingerprint, write_json
from everycause.checkpoints import open_classifier
from everycause.data.shifts import test_view
from everycause.device import start
from everycause.evaluation.metrics import metrics
from everycause.evaluation.predictions import evaluate
from everycause.params import read
from stages.entry import recorded, run


def main(row: str, seed: int, model: str, out: Path, cache: Path = Path(".cache/corruptions")) -> None:
    """Evaluate one model.

    Args:
        row: The row that the model belongs to, for the record.
        seed: The model's seed, for the record; evaluation draws nothing.
        model: Folder of one of our models, timm:NAME for published weights, or a state dict of model.name (.pth, .pt, .safetensors).
        out: Folder to write.
        cache: Folder for corrupted images, where evaluation.keep_corrupted keeps them.
    """
    params = read("run", "tracking", "data", "model", "evaluation")
    device = start(params.run, seed)
    classifier = open_classifier(
        model,
        params.model,
        test_view(params.data, params.run.threads).split.class_names,
        params.data.image_size,
        device,
    )
    with recorded(f"evaluate_ood/{row}", params, out, seed, device, fingerprint(params.data.model_dump_json())) as (
        folder,
        record,
    ):
        stored = evaluate(classifier, params.data, params.evaluation, params.run.threads, cache)
        measures = metrics(stored, params.data.code)
        record({f"test/{name}": value for name, value in measures.items()}, 0)
        stored.save(folder)
        write_json(folder / "metrics.json", measures)


if __name__ == "__main__":
    run(main)
