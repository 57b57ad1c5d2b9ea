"""Stage 6, measure_faithfulness: what flips a prediction, by every selector, for the base and for retrained models.

Reads   the models, the base's filter bank, and the validation split.
Writes  OUT/faithfulness.json, OUT/history.jsonl.
Paper   insertion and deletion as in arXiv 2511.12100 and 2504.00470; the truth of Codebirds is ours.  Cost: about 60 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import write_json
from everycause.data.sources import open_split
from everycause.device import start
from everycause.evaluation.faithfulness import faithfulness
from everycause.explanation.filters import FilterBank
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import recorded, run


def main(seed: int, models: Path, filters: Path, out: Path) -> None:
    """Explain models by every selector and judge the explanations.

    Args:
        seed: The models' seed.
        models: Folder of all models.
        filters: Folder of the base's filter bank.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "masks", "faithfulness", "evaluated")
    device = start(params.run, seed)
    validation = open_split(params.data, "validation", params.run.threads)
    rows = [row for row in params.faithfulness.rows if row in params.evaluated]
    sections = type(params)(**{name: value for name, value in vars(params).items() if name != "evaluated"})
    with recorded("measure_faithfulness/all", sections, out, seed, device, validation.identity) as (folder, record):
        results = {}
        for number, row in enumerate(rows):
            classifier = load(models / row / f"seed-{seed}", device)
            bank = (
                FilterBank.load(filters, model_fingerprint(models / row / f"seed-{seed}")).global_filters(0.0)
                if row == "base"
                else None
            )
            results[row] = faithfulness(
                classifier, validation, params.data, params.masks, params.faithfulness, params.run.threads, bank
            )
            flat = {
                f"{row}/{selector}/{name}": value
                for selector, measures in results[row].items()
                for name, value in measures.items()
            }
            record(flat, number)
        write_json(folder / "faithfulness.json", results)


if __name__ == "__main__":
    run(main)
