"""worlds: the rows of the results table in many worlds and seeds (`make study`), over a grid of worlds (`make map`), or
with flipped training labels (`make noise`).

Reads   params.yaml, of which `worlds` says which worlds, rows and seeds; the images are rendered.
Writes  WORK: finished rows, and bases, filters and masks that they share. OUT/PLAN.csv (columns world, dominance,
        scene_correlation, row, seed, measure, value; that of noise also label_noise), OUT/differences.csv,
        OUT/machine.json, a page and a figure; of the study also the README's table.
        Stopped, it goes on with the rows that are missing.
Paper   hypotheses and analysis stand in reports/log.md, written before the study ran.
        Cost: about 60 s a row on one core; it is said at the start.
"""

from pathlib import Path

from everycause import tracking
from everycause.artifacts import atomic_folder, write_json
from everycause.device import start
from everycause.params import read
from everycause.reporting.figures import save
from everycause.tuning.upstream import TrialParams
from everycause.worlds.analysis import COLUMNS, differences, frame, table
from everycause.worlds.cells import Cell, PlanName, cells
from everycause.worlds.measurement import Laboratory, check_plan
from everycause.worlds.page import (
    map_figure,
    map_page,
    noise_figure,
    noise_page,
    readme_table,
    study_figure,
    study_page,
)
from everycause.worlds.workers import train
from stages.entry import run


def main(plan: PlanName, out: Path, work: Path = Path("tuning/worlds"), workers: int = 0) -> None:
    """Run what is missing of a plan, then write what it says.

    Args:
        plan: `study` (named worlds), `map` (a grid) or `noise` (flipped labels).
        out: Folder to write.
        work: Folder of everything that is kept between runs.
        workers: Processes, each with one thread; 0 for as many as run.threads says.
    """
    params = read("run", "tracking", "data", "evaluation", "worlds", *TrialParams.model_fields)
    chosen, asked = getattr(params.worlds, plan), cells(plan, params.worlds, params.data)
    device = start(params.run.model_copy(update={"threads": 1}), 0)
    sections = ("data", "evaluation", *TrialParams.model_fields)
    check_plan(work / plan, {name: getattr(params, name).model_dump() for name in sections})
    tags = {"stage": "worlds", "plan": plan} | tracking.identity(device, params.data.source)
    with tracking.run(f"{plan} of worlds", params.tracking, tags, chosen.model_dump()) as record:
        laboratory = Laboratory(work / plan, params, 1, device, record.run_id)
        train(laboratory, asked, chosen.rows, workers or params.run.threads)
        with atomic_folder(out, f"worlds/{plan}") as folder:
            write(plan, laboratory, asked, chosen.rows, folder)
            record.artifacts(folder)


def write(plan: PlanName, laboratory: Laboratory, asked: list[Cell], rows: list[str], folder: Path) -> None:
    """The table, the differences, the page and the figure."""
    measured, found = table(laboratory, asked, rows), differences(laboratory, asked, rows)
    if plan != "noise":
        measured = measured[COLUMNS]
    measured.to_csv(folder / f"{plan}.csv", index=False)
    frame(found).to_csv(folder / "differences.csv", index=False)
    machines = sorted({laboratory.machine(cell, row) for cell in asked for row in rows})
    write_json(folder / "machine.json", {"machines": machines, "seeds": sorted({cell.seed for cell in asked})})
    if plan == "study":
        save(study_figure(measured, found), folder / "study.png")
        lines = study_page(measured, found, " and ".join(machines))
        (folder / "readme_table.md").write_text(readme_table(measured, found) + "\n", encoding="utf-8")
    elif plan == "map":
        save(map_figure(found), folder / "map.png")
        lines = map_page(found, len({cell.seed for cell in asked}), " and ".join(machines))
    else:
        save(noise_figure(measured), folder / "noise.png")
        lines = noise_page(measured, " and ".join(machines))
    (folder / f"{plan}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
