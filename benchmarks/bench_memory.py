"""Peak memory of every stage on ten times the images, and on ten times the classes, over that of a toy.

Each stage runs in a process of its own on a tree of made-up photographs, with the smoke profile and `data.memory_mib`
0: what a user allows to be held is not counted. Peak memory is the largest resident set of that process (Linux's
ru_maxrss), libraries included, and PyTorch alone takes most of it. So the sizes of a toy prove little by themselves,
and the parts that once grew are run alone at sizes that count as well, without a network: answers to logits of 1,000
classes, heads of 512 filters, a background bank of images with superpixels of their own.

    memory.STAGE.mib              the toy: 10 classes, 300 training images, 100 of each other split, two corruptions
    memory.STAGE.growth_images    3,000 training images, 1,000 of each other split, over the toy; as many more masks
    memory.STAGE.growth_classes   100 classes, as many images as the toy
    memory.growth_images          the largest of these; memory.growth_classes likewise
    memory.PART.mib, .growth      a part at its small size, and at ten times the images or classes
    memory.….more_mib             what ten times as much takes in addition
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES, TRAIN, OTHERS, SIDE = 10, 300, 100, 32
BASE, FILTERS = "artifacts/models/base/seed-0", "artifacts/filters/minimum_correct/seed-0"
MASKS = "artifacts/masks/counterfactual/seed-0"
STAGES = {
    "check_inputs": "--out artifacts/inputs",
    "train_base": f"--seed 0 --out {BASE}",
    "accumulate_filters": f"--seed 0 --base {BASE} --out {FILTERS}",
    "generate_masks": f"--seed 0 --base {BASE} --out {MASKS}",
    "retrain": f"--row joint --seed 0 --base {BASE} --filters {FILTERS} --masks {MASKS} "
    "--out artifacts/models/joint/seed-0",
    "measure_faithfulness": f"--row base --seed 0 --model {BASE} --filters {FILTERS} --masks {MASKS} "
    "--out artifacts/faithfulness/base/seed-0",
    "evaluate_ood": f"--row base --seed 0 --model {BASE} --out artifacts/evaluation/base/seed-0",
    "detect_misclassifications": f"--seed 0 --base {BASE} --filters {FILTERS} --out artifacts/detection/base/seed-0",
    "report": "--artifacts artifacts --out reports/run",
}
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
"""A small process between: Linux counts the memory of the process that starts another as that one's own."""
PARTS = {"answers": (5_000, 50_000), "heads": (20, 200), "bank": (500, 5_000)}
"""Images, classes, searched images."""


def measures() -> Iterator[tuple[str, float]]:
    """Peak memory of every stage and part, and what ten times the images or classes make of it."""
    toy = dict(peaks(CLASSES, 1))
    grown = {"images": dict(peaks(CLASSES, 10)), "classes": dict(peaks(10 * CLASSES, 1))}
    for stage, mib in toy.items():
        yield f"memory.{stage}.mib", mib
        for kind, found in grown.items():
            yield f"memory.{stage}.growth_{kind}", found[stage] / mib
            yield f"memory.{stage}.{kind}_more_mib", found[stage] - mib
    for kind, found in grown.items():
        yield f"memory.growth_{kind}", max(found[stage] / mib for stage, mib in toy.items())
    for part, sizes in PARTS.items():
        small, large = (peak(["-m", "benchmarks.memory_parts", part, str(size)], ROOT) for size in sizes)
        yield f"memory.{part}.mib", small
        yield f"memory.{part}.growth", large / small
        yield f"memory.{part}.more_mib", large - small


def peaks(classes: int, times: int) -> Iterator[tuple[str, float]]:
    """The peak memory of each stage in MiB, of a pipeline with so many classes and times the toy's images."""
    with tempfile.TemporaryDirectory(prefix="everycause-memory-") as name:
        folder = Path(name)
        for split, count in {"train": TRAIN, "validation": OTHERS, "test": OTHERS}.items():
            photographs(folder / "data" / split, classes, times * count)
        (folder / "params.yaml").write_text(yaml.safe_dump(params(times), sort_keys=False))
        for stage, options in STAGES.items():
            yield stage, peak(["-m", f"stages.{stage}", *options.split()], folder)


def params(times: int) -> dict:
    """The smoke profile on these photographs, with superpixels, and masks for a third of them."""
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["run"]["threads"], raw["tracking"]["system_metrics_seconds"] = 1, 0.0
    raw["rows"], raw["evaluated"], raw["data"]["source"], raw["data"]["memory_mib"] = ["joint"], ["base"], "folder", 0
    raw["data"]["folder"]["image_size"] = SIDE
    raw["training"]["epochs"], raw["retraining"]["epochs"] = (8 if times == 1 else 2), 1
    raw["filters"] |= {"compared": ["only_class"], "confidence_threshold": 0.0}
    raw["filters"]["heads"]["epochs"] = 1
    raw["masks"] |= {"images": 60 * times, "shard": 64, "confidence": 0.0, "partition": "slico", "regions": 25}
    raw["faithfulness"] |= {"rows": ["base"], "selectors": ["random"], "images": 4, "exact_images": 0}
    raw["evaluation"]["keep_corrupted"] = False
    return raw


def photographs(folder: Path, classes: int, count: int) -> None:
    """A tree class/image.png of noise in a color of the class, evenly over the classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        label = number % classes
        color = 60 + 135 * np.array([label % 5 / 4, label // 5 % 5 / 4, label // 25 / 3])
        pixels = (color + generator.normal(0, 12, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
        place = folder / f"class-{label:03d}" / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place, compress_level=1)


def peak(arguments: list[str], folder: Path) -> float:
    """The peak resident memory in MiB of a Python process that runs in a folder.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.splitlines()[-1]) / 1024
