"""Stage 8, report: tables and figures from what the other stages stored.

Reads   all evaluations; of the first seed also the masks and the filter summary.
Writes  OUT/results.md, OUT/table.md, OUT/metrics.json, OUT/*.png.
Paper   the rows are those of specs/training.md.  Cost: about 20 s on two cores.
"""

from pathlib import Path

from everycause import tracking
from everycause.artifact import published, read_json, write_json
from everycause.data.dataset import open_split
from everycause.data.glyphs import CUES
from everycause.explanation.masks import Masks
from everycause.model import load, model_fingerprint
from everycause.params import read
from everycause.reporting import explanations, figures, pictures, tables
from everycause.reporting.document import document
from everycause.reporting.results import Results
from everycause.runtime import start
from everycause.training.rows import ROUNDS
from stages.entry import run

CAPTIONS = {
    "completeness.png": "Accuracy after erasures: a classifier that has learned every cause follows the code's optimum.",
    "reliance.png": "Which parts a classifier's accuracy rests on (exact Shapley values over all subsets).",
    "scene_gap.png": "What the scene is worth to each row.",
    "accuracies.png": "Accuracy on every split.",
    "rounds.png": "The rounds of `masks_rounds`: what the model relies on, and what it takes to flip it.",
    "faithfulness.png": "What flips a prediction: every selector, the base and retrained models.",
    "gallery.png": "Training images, the regions whose removal flips the base, and one counterfactual image of each.",
    "contact_sheet.png": "The same test birds in every split.",
}


def main(artifacts: Path, out: Path) -> None:
    """Write the report.

    Args:
        artifacts: Folder of all artifacts.
        out: Folder to write.
    """
    params = read("seeds", "evaluated", "run", "tracking", "data", "fill", "evaluation")
    seed = params.seeds[0]
    start(params.run, seed)
    results = Results.load(artifacts / "evaluation", params.evaluated, params.seeds)
    filters = read_json(artifacts / "filters" / "minimum_correct" / f"seed-{seed}" / "summary.json", "accumulate_filters")
    masks = read_json(artifacts / "masks" / "counterfactual" / f"seed-{seed}" / "summary.json", "generate_masks")
    faithfulness = read_json(artifacts / "faithfulness" / "all" / f"seed-{seed}" / "faithfulness.json", "measure_faithfulness")
    rounds = read_json(artifacts / "models" / ROUNDS / f"seed-{seed}" / "rounds.json", "retrain_rounds")
    train, base = open_split(params.data, "train", params.run.threads), artifacts / "models" / "base" / f"seed-{seed}"
    found = Masks.load(artifacts / "masks" / "counterfactual" / f"seed-{seed}", model_fingerprint(base), train.identity)
    drawn = {"accuracies.png": figures.accuracies(results)}
    code, parts = params.data.code, []
    if code is not None:
        parts = [cue.name for cue in CUES[: code.length]]
        drawn |= figures.causal_figures(results, code, parts)
    drawn["rounds.png"] = explanations.rounds_figure(rounds, parts, code.distance if code is not None else None)
    if faithfulness:
        drawn["faithfulness.png"] = explanations.faithfulness_figure(faithfulness)
    if bool(found.flipped.any()):
        drawn["gallery.png"] = pictures.counterfactual_gallery(train, found, load(base).statistics, params.fill)
    drawn["contact_sheet.png"] = pictures.contact_sheet(train, params.data, params.evaluation.corruptions, params.run.threads)
    with published(out) as folder, tracking.run("report", params.tracking, {"stage": "report"}, {"rows": ",".join(results.rows)}) as record:
        for name, figure in drawn.items():
            figures.save(figure, folder / name)
        folder.joinpath("table.md").write_text(tables.main_table(results) + "\n")
        folder.joinpath("results.md").write_text(
            document(results, filters, masks, faithfulness, {name: text for name, text in CAPTIONS.items() if name in drawn})
        )
        write_json(folder / "metrics.json", results.means())
        record.artifacts(folder)


if __name__ == "__main__":
    run(main)
