"""The diffusion prior: its filter against its formulas, its gradient, its refinement, its training, and bad input."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.prior import Denoiser, DiffusionPrior, ImageNoise, LowPassPrior, PriorParams
from everycause.explanation.prior_training import (
    load_denoiser,
    open_prior,
    pipeline,
    samples,
    save_prior,
    train_prior,
    training_scheduler,
)
from everycause.explanation.steering import CounterfactualParams
from everycause.params import read
from everycause.unfinished import SECONDS
from tests.conftest import ROOT
from tests.explanation.painting import toy_prior

CPU = torch.device("cpu")


def noise(count: int = 2, side: int = 8, dtype: torch.dtype = torch.float32) -> ImageNoise:
    return ImageNoise(list(range(count)), side, CPU, dtype)


def pictures(count: int = 2, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", (0.0, 1.0))
def test_the_filter_is_the_respaced_chain_written_out(eta: float) -> None:
    prior, images, draws = toy_prior(eta=eta), pictures(), noise()
    shares = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)
    steps = [40, 20, 0]  # the last three of 0, 20, …, 980
    assert prior.steps == steps
    current = shares[40].sqrt() * (2 * images - 1) + (1 - shares[40]).sqrt() * draws.draw()
    for step, before in zip(steps, [20, 0, None], strict=True):
        share, rest = shares[step], torch.tensor(1.0) if before is None else shares[before]
        estimated = prior.denoiser(current, torch.full((2,), step))
        clean = ((current - (1 - share).sqrt() * estimated) / share.sqrt()).clamp(-1, 1)
        direction = (current - share.sqrt() * clean) / (1 - share).sqrt()
        deviation = eta * ((1 - rest) / (1 - share) * (1 - share / rest)).sqrt()
        current = rest.sqrt() * clean + (1 - rest - deviation**2).sqrt() * direction
        if eta:
            current = current + deviation * draws.draw()
    assert torch.allclose(prior.filtered(images, images, noise()), (current + 1) / 2, atol=1e-5)


def test_gradients_through_the_prior_are_those_of_finite_differences() -> None:
    prior = toy_prior(tau=2)
    prior.denoiser.double()
    images, direction = (0.3 + 0.4 * pictures(1, seed=seed).double() for seed in (1, 2))

    def value(changed: torch.Tensor) -> torch.Tensor:
        return prior.filtered(changed, changed, noise(1, dtype=torch.float64)).square().sum()

    changed = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(changed), changed)
    step = 1e-5
    numeric = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    assert gradient.abs().max() > 0.1
    assert torch.allclose((gradient * direction).sum(), numeric, rtol=1e-5)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointed in (False, True):
        images = pictures().requires_grad_()
        filtered = toy_prior(checkpointed=checkpointed).filtered(images, images, noise())
        gradients.append(torch.autograd.grad(filtered.square().sum(), images)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("prior", (toy_prior(), LowPassPrior()), ids=lambda prior: prior.label)
def test_a_refined_image_is_the_original_where_it_is_kept_and_new_elsewhere(prior: object) -> None:
    originals, changed = pictures(seed=1), pictures(seed=2)
    kept = torch.zeros(2, 8, 8, dtype=torch.bool)
    kept[:, :4] = True
    refined = prior.refined(changed, originals, kept, noise())
    assert torch.equal(refined[:, :, :4], originals[:, :, :4])
    assert (refined[:, :, 4:] != originals[:, :, 4:]).double().mean() > 0.9
    assert refined.min() >= 0 and refined.max() <= 1


def test_the_noise_of_an_image_depends_on_its_seed_alone() -> None:
    together, alone = ImageNoise([3, 5], 8, CPU), ImageNoise([5], 8, CPU)
    for _ in range(2):
        assert torch.equal(together.draw()[1:], alone.draw())


def test_the_low_pass_prior_lets_broad_changes_pass_and_no_fine_ones() -> None:
    originals, prior = 0.25 + pictures(1, 32) / 2, LowPassPrior()
    checkers = 0.1 * (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32)[None])
    fine = prior.filtered(originals + checkers, originals, noise()) - originals
    broad = prior.filtered(originals + 0.1, originals, noise()) - originals
    assert fine.abs().max() < 0.01 and torch.allclose(broad, torch.full_like(broad, 0.1), atol=1e-5)


@pytest.mark.parametrize(("tau", "chain"), ((6, 5), (5, 1001)))
def test_a_tau_or_a_chain_that_is_too_long_is_refused(tau: int, chain: int) -> None:
    with pytest.raises(UserError, match="must not be larger than the chain"):
        toy_prior(tau, chain)


def test_the_default_prior_has_fewer_than_three_million_weights() -> None:
    denoiser = Denoiser(read("prior", path=ROOT / "params.yaml").prior, 64)
    assert sum(value.numel() for value in denoiser.parameters()) < 3_000_000


@pytest.fixture
def small(raw: dict) -> PriorParams:
    return PriorParams(**raw["prior"] | {"channels": [8, 32], "epochs": 4, "average": 0.5, "learning_rate": 0.01})


def test_training_learns_to_estimate_noise_and_repeats_bitwise(train: Split, small: PriorParams) -> None:
    some = train.subset(np.arange(min(128, len(train))))
    made = []
    for _ in range(2):
        denoiser, epochs = train_prior(small, some, some.subset(np.arange(16)), 0, CPU)
        losses = [measures["validation/loss"] for measures in epochs]
        made.append(denoiser.state_dict())
    assert losses[-1] < 0.92 * losses[0] < 2
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_a_training_that_stops_after_any_epoch_goes_on_to_the_same_bytes(
    train: Split, small: PriorParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "0")
    some = train.subset(np.arange(64))
    short = small.model_copy(update={"epochs": 2})

    def begun(folder: Path | None) -> tuple[Denoiser, Iterator[dict[str, float]]]:
        return train_prior(short, some, some.subset(np.arange(16)), 0, CPU, folder)

    whole, epochs = begun(None)
    expected = list(epochs)
    for finished in (1, 2):
        folder = tmp_path / str(finished)
        folder.mkdir()
        _, stopped = begun(folder)
        assert [next(stopped) for _ in range(finished)] == expected[:finished]
        stopped.close()
        resumed, rest = begun(folder)
        assert list(rest) == expected
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_samples_start_from_noise_and_are_colors(small: PriorParams) -> None:
    drawn = samples(DiffusionPrior(Denoiser(small, 32), training_scheduler(), 4, 2, 1.0), torch.randn(2, 3, 32, 32))
    assert drawn.shape == (2, 3, 32, 32) and drawn.min() >= 0 and drawn.max() <= 1


def test_a_prior_of_other_images_or_of_another_size_is_refused(
    train: Split, small: PriorParams, raw: dict, tmp_path: Path
) -> None:
    denoiser = Denoiser(small, train.image_size)
    save_prior(denoiser, small, train, tmp_path)
    again = load_denoiser(tmp_path, train)
    assert all(torch.equal(value, denoiser.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(UserError, match="trained on other images"):
        load_denoiser(tmp_path, train.subset(np.arange(8)))
    save_prior(denoiser, small, Split("train", train.labels, train.class_names, 64, train.read, "x"), tmp_path)
    with pytest.raises(UserError, match="of images of 64 pixels, and these have 32"):
        load_denoiser(tmp_path, train)
    with pytest.raises(UserError, match="does not exist: train the prior first"):
        settings = CounterfactualParams(**raw["counterfactuals"])
        open_prior("ace", small, settings, tmp_path / "nowhere", train, CPU)


def test_images_that_cannot_be_halved_often_enough_are_refused(small: PriorParams) -> None:
    with pytest.raises(UserError, match="image size that is a multiple of 4, and the images have 30"):
        Denoiser(small, 30)


def test_a_users_pipeline_takes_the_place_of_the_prior(
    train: Split, small: PriorParams, raw: dict, tmp_path: Path
) -> None:
    unet = UNet2DModel(32, 3, 3, block_out_channels=(8,), layers_per_block=1, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), norm_num_groups=4, add_attention=False)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path)
    settings = CounterfactualParams(**raw["counterfactuals"])
    params = small.model_copy(update={"source": str(tmp_path)})
    prior = open_prior("ace", params, settings, tmp_path, train, CPU)
    assert prior.steps == [10, 0] and prior.filtered(pictures(2, 32), pictures(2, 32), noise(2, 32)).shape[-1] == 32
    assert isinstance(open_prior("pixel_attack", params, settings, tmp_path, train, CPU), LowPassPrior)
    with pytest.raises(UserError, match="makes images of 32 pixels"):
        pipeline(tmp_path, 64)
    with pytest.raises(UserError, match="no folder of a diffusers pipeline"):
        pipeline(tmp_path / "unet", 32)
    with pytest.raises(UserError, match="the chain than the 100 steps"):
        open_prior("ace", params, settings.model_copy(update={"chain": 101}), tmp_path, train, CPU)
