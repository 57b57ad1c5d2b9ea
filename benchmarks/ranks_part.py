"""What each process of bench_ranks does: it searches its share of some images, on one thread, and the first one tells.

Time counts from when all processes are ready to when all are done, so neither imports nor starts are in it.
"""

import json
import sys
import time

import torch

from benchmarks.subject import RAW, subject
from everycause import ranks
from everycause.explanation.image_selection import select_images
from everycause.explanation.masks import MaskParams, searched

IMAGES, WARM, ROUNDS = 1024, 64, 3


def main() -> None:
    """Print wall-clock and processor seconds, the medians of some rounds, as JSON."""
    with ranks.together():
        model, params = subject(), MaskParams(**RAW["masks"])
        torch.set_num_threads(1)
        index = select_images(model.classifier, model.train, params.confidence, IMAGES).index
        list(searched(model.classifier, model.train, index[:WARM], params))
        walls, processors = [], []
        for _ in range(ROUNDS):
            ranks.wait()
            began, used = time.perf_counter(), time.process_time()
            list(searched(model.classifier, model.train, ranks.own_part(index), params))
            used = time.process_time() - used
            processors.append(sum(ranks.gathered(used)))
            walls.append(time.perf_counter() - began)
        if ranks.is_first():
            told = {"wall": sorted(walls)[ROUNDS // 2], "processor": sorted(processors)[ROUNDS // 2]}
            sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
