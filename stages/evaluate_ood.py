"""Stage 7, evaluate_ood: one model on the test split and on every shifted one.

Reads   a classifier and the test splits, which no other stage touches.
Writes  OUT/predictions.safetensors (the logits of every view), OUT/metrics.json, OUT/history.jsonl.
Paper   the protocols stand in reports/deviations.md.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause.artifact import fingerprint, write_json
from everycause.evaluation.metrics import metrics
from everycause.evaluation.ood import evaluate
from everycause.model import load
from everycause.params import read
from everycause.runtime import start
from stages.entry import recorded, run


def main(row: str, seed: int, model: Path, out: Path) -> None:
    """Evaluate one model.

    Args:
        row: The row that the model belongs to, for the record.
        seed: The model's seed, for the record; evaluation draws nothing.
        model: Folder of the model.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "evaluation")
    device = start(params.run, seed)
    classifier = load(model, device)
    with recorded(f"evaluate_ood/{row}", params, out, seed, device, fingerprint(params.data.model_dump_json())) as (folder, record):
        stored = evaluate(classifier, params.data, params.evaluation, params.run.threads)
        measures = metrics(stored, params.data.code)
        record({f"test/{name}": value for name, value in measures.items()}, 0)
        stored.save(folder)
        write_json(folder / "metrics.json", measures)


if __name__ == "__main__":
    run(main)
