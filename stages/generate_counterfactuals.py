"""generate_counterfactuals: images that the base sees as another class, by every method (`make counterfactuals`).

Reads   the base classifier, the prior, the training and validation splits.
Writes  OUT/METHOD/seed-SEED/: counterfactuals-*.safetensors, summary.json, history.jsonl.
Paper   ACE, CVPR 2023; CECAS, arXiv 2507.09881.  Cost: about 6 minutes for 64 images on two cores; it goes on after the
        last finished shard.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

from everycause import ranks
from everycause.artifacts import code_fingerprint, fingerprint, write_json
from everycause.data.attributes import attribute
from everycause.data.sources import SOURCES, DataParams, open_split
from everycause.data.split import Split
from everycause.device import start
from everycause.explanation.counterfactual_images import generate, training_features
from everycause.explanation.latent_factors import FactorModel, factor_quality, train_factors
from everycause.explanation.prior_training import FILE, TRAINED, open_prior
from everycause.explanation.steering import PIXEL_ATTACK, Attack, CounterfactualParams, steering_weight
from everycause.inference import check_fits
from everycause.models import Classifier, load, model_fingerprint
from everycause.params import read
from everycause.tracking import Record
from stages.entry import finish, finished, run
from stages.recording import recorded


def main(base: Path, prior: Path, out: Path, seed: int = 0, method: str | None = None) -> None:
    """Make the counterfactual images of every method of params.yaml, but for those that OUT holds already.

    Args:
        base: Folder of the classifier.
        prior: Folder of the trained prior; not read where the method or params.yaml takes none.
        out: Folder of the methods' images: OUT/METHOD/seed-SEED.
        seed: Seed of the noise and of the factors.
        method: One method alone: pixel_attack, ace, or cecas- and a number.
    """
    params = read("run", "tracking", "data", "prior", "counterfactuals")
    known = params.counterfactuals.spurious_attribute
    if known is not None:  # before any method runs, so that a mistake costs no time
        attribute(params.data, "validation", known)
    for one in params.counterfactuals.methods if method is None else [method]:
        make(one, params, base, prior, out / one / f"seed-{seed}", seed)


def make(method: str, params: SimpleNamespace, base: Path, prior: Path, out: Path, seed: int) -> None:
    """Make the images of one method."""
    settings, alpha = params.counterfactuals, steering_weight(method)
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    data = params.data.seen_by(classifier.framing)
    train, validation = (open_split(data, split, params.run.threads) for split in ("train", "validation"))
    check_fits(classifier, validation)
    filters = open_prior(method, params.prior, settings, prior, train, device)
    key = fingerprint(
        model, train.identity, validation.identity, method, str(seed), params.prior.source,
        fingerprint(prior / FILE) if params.prior.source == TRAINED and method != PIXEL_ATTACK else "",
        settings.model_copy(update={"methods": [method]}).model_dump_json(),
        code_fingerprint("everycause.explanation.counterfactual_images", SOURCES[data.source]),
    )  # fmt: skip
    if ranks.decided(partial(finished, out, key)):
        return
    name = f"generate_counterfactuals/{method}"
    with recorded(name, params, out, seed, device, validation.identity, resume=key) as (folder, record):
        factors = trained_factors(classifier, train, data, settings, seed, record) if alpha else None
        attack = Attack(classifier, filters, settings, factors, alpha)
        summary = generate(attack, validation, folder, model, seed).summary()
        record(summary, settings.factors.epochs + 1)
        if ranks.is_first():
            write_json(folder / "summary.json", summary | {"prior": filters.label})
            finish(folder, key)


def trained_factors(
    classifier: Classifier, train: Split, data: DataParams, params: CounterfactualParams, seed: int, record: Record
) -> FactorModel:
    """The causal and spurious factors of the classifier's features, and a record of their training."""
    known = params.spurious_attribute
    values = None if known is None else attribute(data, "train", known)
    features = training_features(classifier, train, values)
    factors, epochs = train_factors(features, params.factors, 0 if values is None else int(values.max()) + 1, seed)
    for number, measures in enumerate(epochs, 1):
        record(measures, number)
    record(factor_quality(factors, features), params.factors.epochs)
    return factors


if __name__ == "__main__":
    run(main, divided=True)
