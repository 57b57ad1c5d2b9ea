"""questions: three questions that arXiv 2501.11087 leaves open, as experiments (`make questions`).

Reads   params.yaml; the images are rendered.
Writes  WORK: bases. OUT/questions.csv (columns question, setting, row, seed, measure, value), OUT/*.png.
Paper   arXiv 2501.11087.  Cost: about 45 minutes on two cores; stopped, it keeps its bases
        and begins the retrainings again.
"""

from pathlib import Path

import pandas as pd
from tqdm import tqdm

from everycause import tracking
from everycause.artifacts import atomic_folder
from everycause.data.sources import open_split
from everycause.device import start
from everycause.errors import UserError
from everycause.params import read
from everycause.reporting.figures import save
from everycause.tuning.upstream import TrialParams, UpstreamCache
from everycause.worlds.page import question_figures
from everycause.worlds.questions import COLUMNS, Finding, bench, classes, fidelity, overfitting
from stages.entry import run


def main(
    out: Path = Path("reports/questions"),
    work: Path = Path("tuning/questions"),
    seeds: list[int] | None = None,
    epochs: list[int] | None = None,
    images: int = 600,
) -> None:
    """Run the three experiments on the data set of params.yaml, which must be Codebirds.

    Args:
        out: Folder to write.
        work: Folder of the bases, which are kept.
        seeds: Training seeds; 0, 1 and 2 if none are given.
        epochs: Epochs of the bases whose filters are judged; 1, 3, 10 and 20 if none are given.
        images: The few training images.
    """
    params = read("run", "tracking", "data", *TrialParams.model_fields)
    if params.data.source != "codebirds":
        raise UserError(f"make questions needs data.source codebirds, whose causes are known, not {params.data.source}")
    fixed = TrialParams(**{name: getattr(params, name) for name in TrialParams.model_fields})
    device, threads = start(params.run, 0), params.run.threads
    train, validation = (open_split(params.data, name, threads) for name in ("train", "validation"))
    cache = UpstreamCache(work / "pipeline", work / "upstream", fixed, train, validation, device)
    whole, few = (bench(cache, params.data, fixed, threads, count) for count in (None, images))
    found: list[Finding] = []
    tags = {"stage": "questions"} | tracking.identity(device, train.identity)
    with tracking.run("questions", params.tracking, tags, {"images": images}) as record:
        for seed in tqdm(seeds or [0, 1, 2], desc="questions", disable=None):
            found += fidelity(whole, epochs or [1, 3, 10, 20], seed)
            for on in (few, whole):
                found += overfitting(on, seed)
            found += classes(whole, seed)
        with atomic_folder(out, "questions") as folder:
            table = pd.DataFrame(found, columns=pd.Index(COLUMNS))
            table.to_csv(folder / "questions.csv", index=False)
            for name, figure in question_figures(table).items():
                save(figure, folder / f"{name}.png")
            record.artifacts(folder)


if __name__ == "__main__":
    run(main)
