"""Stage 3, generate_masks: the few regions whose removal flips a prediction.

Reads   the base classifier and the training split.
Writes  OUT/masks-*.safetensors (Masks, a file per shard), OUT/summary.json, OUT/history.jsonl. A killed run goes on
        after its last finished shard. Where params.yaml asks for no masks, OUT/summary.json alone, which says so.
Paper   arXiv 2511.12100 (SS-CA), Counterfactual LIMA.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause import ranks
from everycause.artifacts import write_json
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.explanation.masks import MaskParams, generate
from everycause.inference import check_fits
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import asked, leave_out, run
from stages.recording import recorded, resume_key

NAME = "generate_masks/masks"


def main(seed: int, base: Path, out: Path, inputs: Path | None = None) -> None:
    """Search the counterfactual regions of training images.

    Args:
        seed: Seed of the base classifier, for the record; the search draws nothing.
        base: Folder of the base classifier.
        out: Folder to write.
        inputs: File of check_inputs, which says whether params.yaml asks for masks.
    """
    if not asked(inputs):
        leave_out(out, f"{NAME}/seed-{seed}")
        return
    params = read("run", "tracking", "data", "masks")
    check_selector(params.masks)
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    train = open_split(params.data.seen_by(classifier.framing), "train", params.run.threads)
    check_fits(classifier, train)
    key = resume_key("generate_masks", params, SOURCES, model, train.identity)
    with recorded(NAME, params, out, seed, device, train.identity, resume=key) as (folder, record):
        summary = generate(classifier, train, params.masks, folder, model).summary()
        record(summary, 0)
        if ranks.is_first():
            write_json(folder / "summary.json", summary)


def check_selector(masks: MaskParams) -> None:
    """Refuse a selector that needs more than the base and its images.

    Raises:
        UserError: it is `filter_cam`.
    """
    if masks.selector == "filter_cam":
        raise UserError(
            "params.yaml: masks.selector 'filter_cam' needs the filters of each class, and masks are generated without "
            "them: name another selector, and put 'filter_cam' into faithfulness.selectors to compare it"
        )


if __name__ == "__main__":
    run(main, divided=True)
