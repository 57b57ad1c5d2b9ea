"""Stage 5, measure_faithfulness: which regions flip a model's prediction, by every selector.

Reads   a model and the validation split; for the base also its filter bank and its masks.
Writes  OUT/faithfulness.json, OUT/history.jsonl. For the base, its masks of training images are compared with the parts
        of the birds as well. Where params.yaml asks for no selectors, OUT/summary.json alone, which says so.
        A killed run goes on after its last finished selector.
Paper   insertion and deletion as in arXiv 2511.12100 and 2504.00470; the truth of Codebirds is ours.
        Cost: about 15 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import read_json, write_json
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.evaluation.faithfulness import against_truth, faithfulness
from everycause.explanation.filters import FilterBank
from everycause.explanation.masks import Masks
from everycause.inference import check_fits
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import asked, leave_out, run
from stages.recording import recorded, resume_key


def main(row: str, seed: int, model: Path, filters: Path, masks: Path, out: Path, inputs: Path | None = None) -> None:
    """Explain a model by every selector and judge the explanations.

    Args:
        row: The row that the model belongs to.
        seed: The model's seed.
        model: Folder of the model.
        filters: Folder of the base's filter bank.
        masks: Folder of the base's masks.
        out: Folder to write.
        inputs: File of check_inputs, which says whether params.yaml asks for this stage.
    """
    name = f"measure_faithfulness/{row}"
    if not asked(inputs):
        leave_out(out, f"{name}/seed-{seed}")
        return
    params = read("run", "tracking", "data", "masks", "faithfulness")
    device, threads = start(params.run, seed), params.run.threads
    classifier, fingerprint = load(model, device), model_fingerprint(model)
    data = params.data.seen_by(classifier.framing)
    validation = open_split(data, "validation", threads)
    check_fits(classifier, validation)
    files = [file for place in (filters, masks) for file in sorted(place.glob("*.safetensors"))]
    key = resume_key("measure_faithfulness", params, SOURCES, row, str(seed), fingerprint, validation.identity, *files)
    with recorded(name, params, out, seed, device, validation.identity, key) as (folder, record):
        bank = None
        if row == "base" and holds_explanation(filters, "accumulate_filters"):
            bank = FilterBank.load(filters, fingerprint).global_filters(0.0)
        judged = (params.data, params.masks, params.faithfulness, threads, bank, folder)
        measured = faithfulness(classifier, validation, *judged)
        truth = {}
        if row == "base" and holds_explanation(masks, "generate_masks"):
            train = open_split(data, "train", threads)
            found = Masks.load(masks, fingerprint, train.identity, len(train))
            truth = against_truth(found, params.data, threads, seed)
        flat = {f"{row}/{selector}/{k}": value for selector, some in measured.items() for k, value in some.items()}
        record(flat | {f"masks/{name}": value for name, value in truth.items()}, 0)
        write_json(folder / "faithfulness.json", {"selectors": measured, "masks": truth})


def holds_explanation(folder: Path, stage: str) -> bool:
    """Whether a stage explained the base, or params.yaml did not ask for it.

    Raises:
        UserError: the stage did not run.
    """
    return read_json(folder / "summary.json", stage).get("asked", True)


if __name__ == "__main__":
    run(main)
