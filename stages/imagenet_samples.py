"""imagenet_samples: selectors and searches compared on photographs of ImageNet (`make imagenet-samples`).

Every selector of the product and of Captum ranks the regions of the same photographs, and every ranking is judged with
two baselines. The published greedy search runs on some of them beside ours.

Reads   PROFILE (profiles/imagenet-samples.yaml) and the photographs that it names; nothing is trained.
Writes  OUT/rankings.csv and OUT/searches.csv, a line per photograph, OUT/run.json. Stopped, it goes on with the parts
        that are missing. `python -m stages.photographs` makes tables and a page of them.
Paper   arXiv 2511.12100 and 2504.00470 (LIMA).  Cost: about 2,500 forward passes a photograph; said at the start.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from everycause.artifacts import code_fingerprint, fingerprint, is_whole, part, write_json
from everycause.data.sources import open_split
from everycause.device import cpu_name, device_name, start
from everycause.errors import UserError
from everycause.evaluation.rankings import SEARCHES, Bench
from everycause.explanation.attributions import ATTRIBUTIONS, library
from everycause.explanation.image_selection import select_images
from everycause.inference import TIMM, open_classifier
from everycause.params import read
from stages.entry import run
from stages.recording import recorded

SHARD = 6
"""Photographs per finished part."""
PASSES = 2500
"""About how many forward passes one photograph takes, for the cost that is said at the start."""


def main(
    every: int = 1,
    bidirectional: int = 1000,
    greedy: int = 50,
    published: int = 50,
    profile: Path = Path("profiles/imagenet-samples.yaml"),
    out: Path = Path("artifacts/imagenet_samples"),
    images: Path | None = None,
) -> None:
    """Rank and judge the regions of photographs, and compare searches on the first of them.

    Args:
        every: Each how many-th photograph is taken, in the order of their names: 1 takes all.
        bidirectional: On how many of these LIMA's bidirectional search ranks all regions, the slowest selector.
        greedy: On how many of these the greedy search runs as well.
        published: On how many it runs as its authors run it: photograph by photograph, with four terms.
        profile: The params.
        out: Folder to write.
        images: Folder of the photographs; left out, data.root of the profile.
    """
    if min(every, bidirectional, greedy, published) < 1:
        raise UserError("--every, --bidirectional, --greedy and --published must be at least 1: --every 1 takes all")
    library()
    params = read("run", "tracking", "data", "model", "masks", "faithfulness", path=profile)
    device, threads = start(params.run, 0), params.run.threads
    data = params.data if images is None else params.data.model_copy(update={"root": str(images)})
    names, size = open_split(data, "validation", threads).class_names, data.image_size
    classifier = open_classifier(f"{TIMM}{params.model.name}", params.model, names, size, device)
    split = open_split(data.seen_by(classifier.framing), "validation", threads)
    split = split.subset(np.arange(0, len(split), every))
    code = code_fingerprint("everycause.evaluation.rankings")
    key = fingerprint(split.identity, code, params.model.model_dump_json(), params.masks.model_dump_json())
    name = f"imagenet_samples/{params.model.name}"
    asked = {"rankings": [*params.faithfulness.selectors, *ATTRIBUTIONS], "searches": list(SEARCHES)}
    with recorded(name, params, out, 0, device, split.identity, key) as (folder, record):
        index = select_images(classifier, split, params.masks.confidence, params.faithfulness.images).index
        bench = Bench(classifier, split, params.masks)
        say_cost(bench, index)
        few = {"bidirectional": bidirectional, "published": published, "greedy": greedy, "fast": greedy}
        tasks = {name: [(one, index[: few.get(one, len(index))]) for one in names] for name, names in asked.items()}
        found = in_parts(folder, "rankings", bench.rankings, tasks["rankings"])
        searched = in_parts(folder, "searches", bench.search, tasks["searches"])
        for file in folder.glob("part-*.csv"):
            file.unlink()
        found.to_csv(folder / "rankings.csv", index=False, float_format="%.6g")
        searched.to_csv(folder / "searches.csv", index=False, float_format="%.6g")
        described = {"photographs": len(split), "every": every, "right": len(index), "threads": threads}
        described |= {"device": cpu_name() if device.type == "cpu" else device_name(device)}
        described |= {"model": params.model.model_dump(), "masks": params.masks.model_dump()}
        write_json(folder / "run.json", described)
        record(found.groupby("selector").deletion.mean().add_prefix("deletion_auc/").to_dict(), 0)


def in_parts(
    folder: Path, name: str, measure: Callable[..., pd.DataFrame], tasks: list[tuple[str, torch.Tensor]]
) -> pd.DataFrame:
    """The tables of all tasks, some photographs at a time; a part that is there already is read instead of measured.

    The first photographs come first, for every task: what is there when the work is cut short can be compared.
    """
    parts = [(number, what, rows) for what, index in tasks for number, rows in enumerate(index.split(SHARD))]
    found = []
    for number, what, rows in tqdm(sorted(parts, key=lambda one: one[0]), desc=name, disable=None):
        file = folder / f"part-{name}-{number:05d}-{len(rows)}-{what}.csv"
        if not is_whole(file):
            with part(file) as writing:
                measure(rows, what).to_csv(writing, index=False)
        found.append(pd.read_csv(file))
    return pd.concat(found)


def say_cost(bench: Bench, index: torch.Tensor) -> None:
    """Time some forward passes of masked images and say how long the work will take."""
    request = bench.request(index[:1], bench.masks.baseline)
    kept = torch.ones(4 * bench.masks.batch_size, bench.masks.regions, dtype=torch.bool, device=request.exact.device)
    owner = torch.zeros(len(kept), dtype=torch.int64, device=kept.device)
    bench.scorer.logits(request.task.masking, owner, kept).sum().item()
    started = time.perf_counter()
    bench.scorer.logits(request.task.masking, owner, kept).sum().item()
    rate = len(kept) / (time.perf_counter() - started)
    minutes = len(index) * PASSES / rate / 60
    tqdm.write(
        f"{len(index)} photographs, {rate:.0f} forward passes a second: about {minutes:.0f} minutes for rankings"
    )


if __name__ == "__main__":
    run(main)
