"""measure_counterfactuals: how good the counterfactual images of all methods are (`make counterfactuals`).

Reads   the base classifier, an independent one, the counterfactual images, the validation split.
Writes  OUT/table.csv (columns method, measure, value, low, high), OUT/gallery.png.
Paper   ACE, CVPR 2023, section 4; the truth of Codebirds is ours.  Cost: about a minute on two cores.
"""

from pathlib import Path

import pandas as pd
import torch

from everycause.artifacts import atomic_folder
from everycause.data.sources import open_split, renderer
from everycause.device import start
from everycause.errors import UserError
from everycause.evaluation.counterfactual_judgement import COLUMNS, Judge, Subject, table
from everycause.explanation.counterfactual_images import CounterfactualImages
from everycause.inference import check_fits
from everycause.models import load, model_fingerprint
from everycause.params import read
from everycause.reporting.counterfactuals import gallery
from everycause.reporting.figures import save
from stages.entry import run

SHOWN = 10
"""Images of the gallery."""


def main(base: Path, decoder: Path, images: Path, out: Path = Path("reports/counterfactuals"), seed: int = 0) -> None:
    """Judge the counterfactual images of every method of params.yaml.

    Args:
        base: Folder of the explained classifier.
        decoder: Folder of an independent one.
        images: Folder of the methods' images: IMAGES/METHOD/seed-SEED.
        out: Folder to write.
        seed: Seed of the images.
    """
    params = read("run", "data", "counterfactuals")
    device = start(params.run, seed)
    classifier, independent, model = load(base, device), load(decoder, device), model_fingerprint(base)
    validation = open_split(params.data.seen_by(classifier.framing), "validation", params.run.threads)
    for one in (classifier, independent):
        check_fits(one, validation)
    places = {method: images / method / f"seed-{seed}" for method in params.counterfactuals.methods}
    found = {method: CounterfactualImages.load(place, model, validation.identity) for method, place in places.items()}
    birds = renderer(params.data, params.run.threads) if params.data.code is not None else None
    subject = common_subject(found)
    changed = {method: one.images for method, one in found.items()}
    with atomic_folder(out, "measure_counterfactuals") as folder:
        rows = list(table(Judge(classifier, independent, validation, birds), subject, changed))
        frame = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
        frame.to_csv(folder / "table.csv", index=False, float_format="%.4g")
        some = slice(0, SHOWN)
        names = [[validation.class_names[number] for number in classes[some]] for classes in subject[1:]]
        titles = [f"{before}\n→ {after}" for before, after in zip(*names, strict=True)]
        originals = validation.read(subject.index[some].numpy())
        save(gallery(originals, {name: one[some] for name, one in changed.items()}, titles), folder / "gallery.png")


def common_subject(found: dict[str, CounterfactualImages]) -> Subject:
    """The images that all methods have changed.

    Raises:
        UserError: the methods changed other images, or towards other targets.
    """
    first = next(iter(found.values()))
    for method, one in found.items():
        if not (torch.equal(one.index, first.index) and torch.equal(one.target, first.target)):
            raise UserError(f"'{method}' changed other images than the rest: run generate_counterfactuals again")
    return Subject(first.index, first.prediction, first.target)


if __name__ == "__main__":
    run(main)
