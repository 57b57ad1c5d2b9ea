"""Stage 2, accumulate_filters: the filters that each class cannot do without.

Reads   the base classifier, the training split, and the validation split to judge every generator on.
Writes  OUT/filters.safetensors (a FilterBank), OUT/incorrect_heads.safetensors, OUT/summary.json, OUT/history.jsonl.
Paper   arXiv 2501.11087, section 4.1, with the heads of arXiv 2501.06831.  Cost: about 30 s on two cores.
"""

from pathlib import Path

from everycause.artifacts import save_tensors, write_json
from everycause.data.sources import open_split
from everycause.device import start
from everycause.explanation.filters import INCORRECT, accumulate, filter_generator, incorrect_quality, quality
from everycause.explanation.heads import LastLayer, train_incorrect_heads
from everycause.inference import readout_of
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import recorded, run


def main(seed: int, base: Path, out: Path) -> None:
    """Train the counterfactual heads and accumulate global filters.

    Args:
        seed: Seed of the heads.
        base: Folder of the base classifier.
        out: Folder to write.
    """
    params = read("run", "tracking", "data", "filters")
    device, filters = start(params.run, seed), params.filters
    classifier, model = load(base, device), model_fingerprint(base)
    train, validation = (open_split(params.data, name, params.run.threads) for name in ("train", "validation"))
    head = LastLayer(*classifier.head()).to("cpu")
    with recorded("accumulate_filters/filters", params, out, seed, device, train.identity) as (folder, record):
        seen, held_out = readout_of(classifier, train), readout_of(classifier, validation)
        judged = (head, held_out, validation.labels, filters.confidence_threshold, seed)
        generators = {
            name: filter_generator(name, seen, train.labels, head, filters.heads, seed, device)
            for name in dict.fromkeys([filters.generator, *filters.compared])
        }
        bank = accumulate(
            generators[filters.generator],
            head,
            seen,
            train.labels,
            train.class_names,
            filters.confidence_threshold,
            model,
        )
        incorrect = train_incorrect_heads(
            seen.activations.to(device), train.labels.to(device), head.to(device), filters.heads, seed
        )
        summary = bank.summary(filters)
        summary |= {
            f"{name}/{measure}": value
            for name, local in generators.items()
            for measure, value in quality(local, *judged).items()
        }
        summary |= {
            f"minimum_incorrect/{measure}": value for measure, value in incorrect_quality(incorrect, *judged).items()
        }
        record(summary, 0)
        bank.save(folder)
        save_tensors(folder / INCORRECT, {"weight": incorrect.weight, "bias": incorrect.bias}, {"model": model})
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    run(main)
