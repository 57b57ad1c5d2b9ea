"""Causal and spurious factors of a classifier's features, told apart by a variational autoencoder.

The assumed causal graph: latent causes C and spurious factors S are independent, both produce the image X, and the
label Y depends on C alone. A counterfactual image should change C and keep S. The features R of the frozen classifier
(its pooled explained layer) are encoded into a normal distribution of (C, S), and decoded from a draw of it:

    L = ½‖R − R̂‖² + β·KL + CE(h(C), y) + CE(k(S), y), gradient reversed, + ‖cov(C, S)‖²_F + CE(g(S), f(x)) for g alone

where h, k and g are small classifiers. g imitates the classifier's probabilities f(x) as far as S allows: what it reads
from an image is what the classifier would believe from spurious factors. Where a spurious attribute of the training
images is known, k predicts that attribute instead, and its gradient is not reversed: S may then know as much about the
label as the attribute does.

Source: CECAS, arXiv 2507.09881, known from its abstract and from reviews; what it leaves open is our choice
(reports/deviations.md). The autoencoder is that of Higgins et al., ICLR 2017.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Float, Int64


class FactorParams(Section):
    """The autoencoder that tells causal from spurious factors."""

    causal: int = Field(ge=1, le=4096)
    """Dimensions of the causal factors C."""
    spurious: int = Field(ge=1, le=4096)
    """Dimensions of the spurious factors S."""
    hidden: int = Field(ge=1, le=65_536)
    """Units of the hidden layers."""
    beta: float = Field(ge=0, le=1000)
    """β, the weight of the divergence from a standard normal distribution."""
    epochs: int = Field(ge=1, le=100_000)
    """Passes over the features of the training images."""
    batch_size: int = Field(ge=2, le=100_000)
    """Images per step."""
    learning_rate: float = Field(gt=0, le=1)
    """Learning rate of Adam, constant."""


class _ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient has the opposite sign (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Encoding(NamedTuple):
    """Mean and logarithm of the variance of the factors of some images, causal ones first."""

    mean: Float[Tensor, "batch factors"]
    log_variance: Float[Tensor, "batch factors"]


class FactorModel(nn.Module):
    """Encoder, decoder and the three classifiers on factors."""

    def __init__(self, features: int, classes: int, params: FactorParams, attributes: int = 0) -> None:
        """Newly drawn weights.

        Args:
            features: Number of features of the classifier.
            classes: Number of its classes.
            params: Sizes.
            attributes: Values of the known spurious attribute; 0 if none is known.
        """
        super().__init__()
        self.params = params
        self.supervised = attributes > 0
        factors, hidden = params.causal + params.spurious, params.hidden
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 2 * factors))
        self.decoder = nn.Sequential(nn.Linear(factors, hidden), nn.ReLU(), nn.Linear(hidden, features))
        self.label_head = nn.Linear(params.causal, classes)
        self.spurious_head = nn.Linear(params.spurious, attributes or classes)
        self.imitation = nn.Linear(params.spurious, classes)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.deviation: Tensor
        self.register_buffer("deviation", torch.ones(features))

    def encode(self, features: Float[Tensor, "batch features"]) -> Encoding:
        """The distribution of the factors behind features as the classifier gives them."""
        return Encoding(*self.encoder((features - self.mean) / self.deviation).chunk(2, dim=1))

    def spurious_reading(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """g(S): the logits that the spurious factors suggest, at the mean of their distribution."""
        return self.imitation(self.encode(features).mean[:, self.params.causal :])


class FactorBatch(NamedTuple):
    """What the loss of one step is computed from."""

    features: Float[Tensor, "batch features"]
    probabilities: Float[Tensor, "batch classes"]
    """The classifier's own, f(x)."""
    labels: Int64[Tensor, "batch"]
    attribute: Int64[Tensor, "batch"] | None
    """The known spurious attribute."""


def loss_terms(
    model: FactorModel, batch: FactorBatch, noise: Float[Tensor, "batch factors"]
) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss, means over the batch; their sum is minimized.

    Args:
        model: The autoencoder.
        batch: The images of one step.
        noise: Standard normal draws, which make the sampled factors.
    """
    encoding, count = model.encode(batch.features), len(batch.features)
    factors = encoding.mean + (encoding.log_variance / 2).exp() * noise
    causal, spurious = factors.split([model.params.causal, model.params.spurious], dim=1)
    scaled = (batch.features - model.mean) / model.deviation
    divergence = (encoding.mean.square() + encoding.log_variance.exp() - encoding.log_variance - 1).sum() / 2
    covariance = (causal - causal.mean(dim=0)).T @ (spurious - spurious.mean(dim=0)) / max(count - 1, 1)
    if batch.attribute is None:
        apart = cross_entropy(model.spurious_head(_ReversedGradient.apply(spurious)), batch.labels)
    else:
        apart = cross_entropy(model.spurious_head(spurious), batch.attribute)
    read = model.imitation(encoding.mean[:, model.params.causal :].detach())
    return {
        "reconstruction": (model.decoder(factors) - scaled).square().sum() / (2 * count),
        "divergence": model.params.beta * divergence / count,
        "label": cross_entropy(model.label_head(causal), batch.labels),
        "spurious": apart,
        "covariance": covariance.square().sum(),
        "imitation": cross_entropy(read, batch.probabilities),
    }


def train_factors(
    data: FactorBatch, params: FactorParams, attributes: int, seed: int
) -> tuple[FactorModel, Iterator[dict[str, float]]]:
    """An autoencoder, and the epochs that train it in place, where the features lie.

    Args:
        data: All training images.
        params: The section `counterfactuals.factors`.
        attributes: Values of the known spurious attribute; 0 if none is known.
        seed: Seed of the weights, the order and the sampled factors.
    """
    device, classes = data.features.device, data.probabilities.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FactorModel(data.features.shape[1], classes, params, attributes)
    model.mean.copy_(data.features.mean(dim=0))
    model.deviation.copy_(data.features.std(dim=0).clamp_min(1e-6))
    return model.to(device), _epochs(model, data, seed)


def _epochs(model: FactorModel, data: FactorBatch, seed: int) -> Iterator[dict[str, float]]:
    params, generator = model.params, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), params.learning_rate)
    for epoch in range(1, params.epochs + 1):
        sums: dict[str, float] = {}
        chunks = torch.randperm(len(data.features), generator=generator).split(params.batch_size)
        for rows in chunks:
            some = FactorBatch(*(value if value is None else value[rows] for value in data))
            noise = torch.randn(len(rows), params.causal + params.spurious, generator=generator)
            terms = loss_terms(model, some, noise.to(data.features.device))
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss of the factors is {loss.item()} at epoch {epoch}: lower "
                    "counterfactuals.factors.learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item() / len(chunks)
        yield {f"factors/{name}": value for name, value in sums.items()}
    model.eval().requires_grad_(False)


@torch.no_grad()
def factor_quality(model: FactorModel, data: FactorBatch) -> dict[str, float]:
    """How well the factors can be told apart: shares of images, from 0 to 1.

    label_from_causal: h is right. spurious_known: k is right about the attribute, or, without one, about the label,
    which should then be near chance. imitation_agrees: g and the classifier name the same class.
    """
    means = model.encode(data.features).mean
    causal, spurious = means.split([model.params.causal, model.params.spurious], dim=1)
    known = data.labels if data.attribute is None else data.attribute
    right = {
        "label_from_causal": model.label_head(causal).argmax(dim=1) == data.labels,
        "spurious_known": model.spurious_head(spurious).argmax(dim=1) == known,
        "imitation_agrees": model.imitation(spurious).argmax(dim=1) == data.probabilities.argmax(dim=1),
    }
    return {f"factors/{name}": float(value.double().mean()) for name, value in right.items()}
