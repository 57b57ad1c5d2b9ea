"""train_prior: the diffusion model through which counterfactual images are made (`make counterfactuals`).

Reads   the training and validation splits.
Writes  OUT/prior.safetensors, OUT/history.jsonl, OUT/samples.png. Where params.yaml names another prior,
        OUT/summary.json alone, which says so. A killed run goes on after the last epoch that it kept.
Paper   Ho, Jain, Abbeel, NeurIPS 2020.  Cost: about 20 minutes on two cores.
"""

from pathlib import Path

import torch

from everycause.artifacts import code_fingerprint, fingerprint
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.explanation.prior import DiffusionPrior
from everycause.explanation.prior_training import TRAINED, samples, save_prior, train_prior, training_scheduler
from everycause.params import read
from everycause.reporting.counterfactuals import sheet
from everycause.reporting.figures import save
from stages.entry import finish, finished, leave_out, run
from stages.recording import recorded, resume_key

SAMPLES = 32
"""Images that are drawn from the prior, to be looked at."""


def main(out: Path, seed: int = 0) -> None:
    """Train the prior, unless OUT holds it already.

    Args:
        out: Folder to write.
        seed: Seed of the weights, the order and the noise.
    """
    params, name = read("run", "tracking", "data", "prior", "counterfactuals"), "train_prior/prior"
    if params.prior.source != TRAINED:
        leave_out(out, f"{name}/seed-{seed}")
        return
    device = start(params.run, seed)
    train, validation = (open_split(params.data, split, params.run.threads) for split in ("train", "validation"))
    code = code_fingerprint("everycause.explanation.prior_training", SOURCES[params.data.source])
    key = fingerprint(train.identity, params.prior.model_dump_json(), str(seed), code)
    if finished(out, key):
        return
    unfinished = resume_key("train_prior", params, SOURCES, key, validation.identity)
    with recorded(name, params, out, seed, device, train.identity, unfinished) as (folder, record):
        denoiser, epochs = train_prior(params.prior, train, validation, seed, device, folder)
        for number, measures in enumerate(epochs, 1):
            record(measures, number)
        save_prior(denoiser, params.prior, train, folder)
        prior = DiffusionPrior(denoiser.eval(), training_scheduler(), params.counterfactuals.chain, 1, eta=0.0)
        side = train.image_size
        drawn = torch.randn(SAMPLES, 3, side, side, generator=torch.Generator().manual_seed(seed))
        made = (samples(prior, drawn.to(device)) * 255).round().to(torch.uint8).cpu()
        save(sheet(made), folder / "samples.png")
        finish(folder, key)


if __name__ == "__main__":
    run(main)
