"""Stage 2, accumulate_filters: the filters that the images of each class need.

Reads   the base classifier, the training split, and the validation split, on which every generator is judged.
Writes  OUT/filters.safetensors (the counts of a FilterBank), OUT/heads-*.safetensors and
        OUT/incorrect_heads-*.safetensors (a block of classes per file), OUT/summary.json,
        OUT/pictures.safetensors (what figures of the filters are drawn from), OUT/history.jsonl.
        Where params.yaml asks for no filters, OUT/summary.json alone, which says so. A killed run goes on with the
        heads, after the last epoch that it kept.
Paper   arXiv 2501.11087, section 4.1, with the heads of arXiv 2501.06831.  Cost: about 30 s on two cores.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from everycause.artifacts import save_tensors, write_json
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.evaluation.class_filters import PICTURES, filter_pictures, overlap_measures
from everycause.explanation.filter_heads import INCORRECT, StoredHeads
from everycause.explanation.filters import (
    accumulate,
    filter_generator,
    filter_quality,
    incorrect_filter_quality,
)
from everycause.explanation.heads import LastLayer, incorrect_head_blocks
from everycause.inference import readout_of
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import asked, leave_out, run
from stages.recording import recorded, resume_key

NAME = "accumulate_filters/filters"


def main(seed: int, base: Path, out: Path, inputs: Path | None = None) -> None:
    """Train the counterfactual heads and accumulate global filters.

    Args:
        seed: Seed of the heads.
        base: Folder of the base classifier.
        out: Folder to write.
        inputs: File of check_inputs, which says whether params.yaml asks for filters.
    """
    if not asked(inputs):
        leave_out(out, f"{NAME}/seed-{seed}")
        return
    params = read("run", "tracking", "data", "filters")
    device, filters = start(params.run, seed), params.filters
    classifier, model = load(base, device), model_fingerprint(base)
    data = params.data.seen_by(classifier.framing)
    train, validation = (open_split(data, name, params.run.threads) for name in ("train", "validation"))
    head = LastLayer(*classifier.head()).to("cpu")
    key = resume_key("accumulate_filters", params, SOURCES, model, train.identity, validation.identity, str(seed))
    with recorded(NAME, params, out, seed, device, train.identity, key) as (folder, record):
        seen, held_out = readout_of(classifier, train), readout_of(classifier, validation)
        on_device = seen.activations.to(device), train.labels.to(device), head.to(device)
        trained_on = (seen, train.labels, head, filters.heads, seed, device)
        judged, measured = (head, held_out, validation.labels, filters.confidence_threshold, seed), {}
        local = filter_generator(filters.generator, *trained_on, kept=(folder, model), folder=folder)
        measured[filters.generator] = filter_quality(local, *judged)
        for name in filters.compared:
            if name != filters.generator:
                with TemporaryDirectory(dir=folder) as scratch:  # one after the other: heads of many classes are large
                    other = filter_generator(name, *trained_on, kept=(Path(scratch), model), folder=folder)
                    measured[name] = filter_quality(other, *judged)
        bank = accumulate(local, head, seen, train.labels, filters.confidence_threshold, model)
        blocks = incorrect_head_blocks(*on_device, filters.heads, seed, folder)
        incorrect = StoredHeads.written(blocks, folder, model, INCORRECT)
        measured["minimum_incorrect"] = incorrect_filter_quality(incorrect, *judged)
        summary = bank.summary(filters) | {
            f"{name}/{measure}": value for name, measures in measured.items() for measure, value in measures.items()
        }
        threshold = filters.detection_frequency_threshold
        if params.data.code is not None:
            summary |= overlap_measures(bank.global_filters(threshold), params.data.code)
        record(summary, 0)
        bank.save(folder)
        save_tensors(folder / PICTURES, *filter_pictures(classifier, bank, train, threshold))
        told = {"filters_are": classifier.filters_are(), "frequency_threshold": threshold}
        write_json(folder / "summary.json", summary | told)


if __name__ == "__main__":
    run(main)
