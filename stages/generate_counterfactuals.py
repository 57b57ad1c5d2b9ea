"""generate_counterfactuals: images that the base sees as another class, by one method (`make counterfactuals`).

Reads   the base classifier, the prior, the training and validation splits.
Writes  OUT/counterfactuals-*.safetensors, OUT/summary.json, OUT/history.jsonl.
Paper   ACE, CVPR 2023; CECAS, arXiv 2507.09881.  Cost: about 6 minutes for 64 images on two cores; it goes on after the
        last finished shard.
"""

from pathlib import Path

from everycause.artifacts import code_fingerprint, fingerprint, write_json
from everycause.data.attributes import attribute
from everycause.data.sources import SOURCES, open_split
from everycause.device import start
from everycause.explanation.counterfactual_images import generate, training_features
from everycause.explanation.latent_factors import factor_quality, train_factors
from everycause.explanation.prior_training import FILE, open_prior
from everycause.explanation.steering import Attack, steering_weight
from everycause.inference import check_fits
from everycause.models import load, model_fingerprint
from everycause.params import read
from stages.entry import finish, finished, recorded, run


def main(method: str, base: Path, prior: Path, out: Path, seed: int = 0) -> None:
    """Make the counterfactual images of one method, unless OUT holds them already.

    Args:
        method: pixel_attack, ace, or cecas- and a number.
        base: Folder of the classifier.
        prior: Folder of the trained prior; not read where the method or params.yaml takes none.
        out: Folder to write.
        seed: Seed of the noise and of the factors.
    """
    params = read("run", "tracking", "data", "prior", "counterfactuals")
    settings, alpha = params.counterfactuals, steering_weight(method)
    device = start(params.run, seed)
    classifier, model = load(base, device), model_fingerprint(base)
    data = params.data.seen_by(classifier.framing)
    train, validation = (open_split(data, split, params.run.threads) for split in ("train", "validation"))
    check_fits(classifier, validation)
    filters = open_prior(method, params.prior, settings, prior, train, device)
    if settings.spurious_attribute is not None:  # refused for every method, so that one without it does not run first
        attribute(data, "validation", settings.spurious_attribute)
    code = code_fingerprint("everycause.explanation.counterfactual_images", SOURCES[data.source])
    with_prior = fingerprint(prior / FILE) if filters.label == "diffusion" and (prior / FILE).is_file() else ""
    key = fingerprint(
        model, train.identity, validation.identity, with_prior, params.prior.source, method, str(seed), code,
        settings.model_copy(update={"methods": [method]}).model_dump_json(),
    )  # fmt: skip
    if finished(out, key):
        return
    name = f"generate_counterfactuals/{method}"
    with recorded(name, params, out, seed, device, validation.identity, resume=key) as (folder, record):
        attack = Attack(classifier, filters, settings, alpha=alpha)
        if alpha:
            known = settings.spurious_attribute
            values = None if known is None else attribute(data, "train", known)
            features = training_features(classifier, train, values)
            kinds = 0 if values is None else int(values.max()) + 1
            factors, epochs = train_factors(features, settings.factors, kinds, seed)
            for number, measures in enumerate(epochs, 1):
                record(measures, number)
            record(factor_quality(factors, features), 0)
            attack = Attack(classifier, filters, settings, factors, alpha)
        summary = generate(attack, validation, folder, model, seed).summary()
        record(summary, 0)
        write_json(folder / "summary.json", summary | {"prior": filters.label})
        finish(folder, key)


if __name__ == "__main__":
    run(main)
