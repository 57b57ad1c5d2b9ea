"""Diffusion priors: trained on the images of the task, saved, loaded, or taken from a user's pipeline."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from everycause.artifacts import load_tensors, save_tensors
from everycause.data.split import Split, batches
from everycause.errors import UserError
from everycause.explanation.prior import Denoiser, DiffusionPrior, LowPassPrior, Prior, PriorParams
from everycause.explanation.steering import PIXEL_ATTACK, CounterfactualParams
from everycause.params import Section
from everycause.precision import in_precision
from everycause.shapes import Float, Int64
from everycause.unfinished import Unfinished
from everycause.weights import UNREADABLE, not_finite

FILE = "prior.safetensors"
TRAINED, NONE = "trained", "none"
INPAINTING = (10, 8)
"""Steps of the respaced chain that paints what is missing, and those of them that are taken: from strong noise on."""
STEPS = 1000
"""Steps of the chain in training; noise variances grow linearly from 1e-4 to 0.02, as in Ho et al., section 4."""


class Description(Section):
    """What is saved with the weights of a prior."""

    params: PriorParams
    image_size: int = Field(ge=1)
    data: str
    """Identity of the training split."""


class PipelineDenoiser(nn.Module):
    """The U-Net of a user's pipeline, called as Denoiser is."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], step: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The noise in images at a step of the chain."""
        return self.unet(images, step).sample


def training_scheduler() -> Any:
    """The chain that priors are trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=STEPS)


def train_prior(
    params: PriorParams, train: Split, validation: Split, seed: int, device: torch.device, folder: Path | None = None
) -> tuple[Denoiser, Iterator[dict[str, float]]]:
    """A denoiser, and the epochs that train it in place; after the last one it has the average of the weights.

    The loss is the mean squared error of the estimated noise (Ho et al., equation 14), with more steps of little noise.
    With the folder of an unfinished artifact, a training that was killed goes on after the last epoch that it kept; the
    epochs that it had yielded come first.

    Returns:
        The denoiser; an iterator that trains an epoch at a time and yields the loss on training and validation images.

    Raises:
        UserError: the image size cannot be halved often enough, or, while training, the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(params, train.image_size).to(device, memory_format=torch.channels_last)
    return denoiser, _epochs(denoiser, params, train, validation, seed, Unfinished(folder))


def _epochs(
    denoiser: Denoiser, params: PriorParams, train: Split, validation: Split, seed: int, unfinished: Unfinished
) -> Iterator[dict[str, float]]:
    generator, total = torch.Generator().manual_seed(seed), params.epochs * -(-len(train) // params.batch_size)
    optimizer = torch.optim.AdamW(denoiser.parameters(), params.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=max(total, 2), pct_start=0.1, cycle_momentum=False
    )
    average = ModelEmaV3(denoiser, params.average, use_warmup=True)
    changing = {"denoiser": denoiser, "optimizer": optimizer, "schedule": schedule, "average": average.module}
    recorded = _restored(unfinished, changing, generator, next(denoiser.parameters()).device)
    if len(recorded) == params.epochs:
        denoiser.load_state_dict(average.module.state_dict())
    yield from recorded
    for epoch in range(len(recorded) + 1, params.epochs + 1):
        order, losses = torch.randperm(len(train), generator=generator).numpy(), []
        title = f"prior epoch {epoch}/{params.epochs}"
        shown = tqdm(batches(train, params.batch_size, order), desc=title, disable=None, leave=False)
        for number, batch in enumerate(shown, 1):
            loss = denoising_loss(denoiser, batch.images.float() / 127.5 - 1, generator)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the prior's loss is {loss.item()} at epoch {epoch}, batch {number}: lower prior.learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(denoiser, step=int(schedule.last_epoch))
            losses.append(loss.item())
        reached = validation_loss(average.module, validation, params.batch_size)
        recorded.append({"train/loss": float(np.mean(losses)), "validation/loss": reached})
        if unfinished.due():
            parts = {name: part.state_dict() for name, part in changing.items()}
            unfinished.save({**parts, "generator": generator.get_state(), "recorded": recorded})
        if epoch == params.epochs:
            denoiser.load_state_dict(average.module.state_dict())
        yield recorded[-1]


def _restored(
    unfinished: Unfinished, changing: dict[str, Any], generator: torch.Generator, device: torch.device
) -> list[dict[str, float]]:
    """The epochs that were recorded before a kill, with everything that changes in its state after them."""
    if (state := unfinished.load(device)) is None:
        return []
    for name, part in changing.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"].cpu())
    recorded: list[dict[str, float]] = state["recorded"]
    return recorded


def denoising_loss(
    denoiser: nn.Module, images: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean squared error of the noise that is estimated in images with values from −1 to 1, at random steps.

    Every second step is among the quarter with the least noise: the filter uses no others.
    """
    device = next(denoiser.parameters()).device
    step = (STEPS * torch.rand(len(images), generator=generator).square()).long()
    noise = torch.randn(images.shape, generator=generator)
    noisy = training_scheduler().add_noise(images, noise, step)
    return mse_loss(denoiser(noisy.to(device), step.to(device)), noise.to(device))


@torch.no_grad()
def validation_loss(denoiser: nn.Module, validation: Split, size: int) -> float:
    """The loss on validation images, with the same noise every time."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    for batch in batches(validation, size):
        images = batch.images.float() / 127.5 - 1
        total += len(images) * float(denoising_loss(denoiser, images, generator))
    return total / len(validation)


def save_prior(denoiser: Denoiser, params: PriorParams, train: Split, folder: Path) -> None:
    """Write weights and description into a folder, as one file."""
    told = {"params": params.model_dump(), "image_size": train.image_size, "data": train.identity}
    save_tensors(folder / FILE, denoiser.state_dict(), told)


def load_denoiser(folder: Path, train: Split) -> Denoiser:
    """A trained denoiser.

    Raises:
        UserError: there is none, it is damaged, or it was trained on images of another size or on other images.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder / FILE} does not exist: train the prior first (`make counterfactuals`)")
    tensors, description = load_tensors(folder / FILE, "train_prior")
    again = "train the prior again (delete it and `make counterfactuals`)"
    try:
        told = Description.model_validate_json(json.dumps(description))
        if told.image_size != train.image_size:
            raise UserError(
                f"{folder / FILE} is a prior of images of {told.image_size} pixels, and these have {train.image_size}: "
                f"{again}"
            )
        if told.data != train.identity:
            raise UserError(f"{folder / FILE} was trained on other images ({told.data}, not {train.identity}): {again}")
        denoiser = Denoiser(told.params, told.image_size)
        denoiser.load_state_dict(tensors)
    except UserError:
        raise
    except (ValidationError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / FILE} is no prior of this version ({reason}): {again}") from error
    if broken := not_finite(tensors):
        raise UserError(f"{folder / FILE} holds weights that are not finite ('{broken}'): {again}")
    return denoiser


def pipeline(folder: Path, image_size: int) -> tuple[nn.Module, Any]:
    """Denoiser and scheduler of a pipeline that diffusers saved; nothing is downloaded.

    Raises:
        UserError: there is none, or it makes other images than ours.
    """
    from diffusers import DDPMPipeline

    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"prior.source is '{folder}', which is no folder of a diffusers pipeline (it has no model_index.json): "
            f"give one, or {TRAINED} or {NONE}"
        )
    try:
        loaded = DDPMPipeline.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"prior.source '{folder}' cannot be loaded as a DDPMPipeline ({type(error).__name__}): save it again with "
            "save_pretrained"
        ) from error
    told = loaded.unet.config
    if (told.sample_size, told.in_channels, told.out_channels) != (image_size, 3, 3):
        raise UserError(
            f"prior.source '{folder}' makes images of {told.sample_size} pixels with {told.in_channels} channels in "
            f"and {told.out_channels} out, and 3 channels of {image_size} pixels are needed: name another pipeline"
        )
    return PipelineDenoiser(loaded.unet), loaded.scheduler


def open_prior(
    method: str, prior: PriorParams, params: CounterfactualParams, folder: Path, train: Split, device: torch.device
) -> Prior:
    """The prior that a method uses.

    Args:
        method: One of counterfactuals.methods.
        prior: The section `prior`.
        params: The section `counterfactuals`.
        folder: Folder of the trained prior.
        train: The training images, which a trained prior must have seen.
        device: Where it computes.

    Raises:
        UserError: it is not there, or does not fit the images or τ.
    """
    if method == PIXEL_ATTACK or prior.source == NONE:
        return LowPassPrior()
    if prior.source == TRAINED:
        denoiser, scheduler = load_denoiser(folder, train), training_scheduler()
    else:
        denoiser, scheduler = pipeline(Path(prior.source), train.image_size)
    denoiser = denoiser.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    denoiser = in_precision(denoiser, params.precision)
    return DiffusionPrior(denoiser, scheduler, params.chain, params.tau, params.eta, params.checkpointed)


def inpainting_prior(folder: Path, train: Split, device: torch.device) -> DiffusionPrior:
    """A trained prior that paints what is missing: it begins under much noise, in few large steps.

    Raises:
        UserError: as load_denoiser.
    """
    denoiser = load_denoiser(folder, train).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return DiffusionPrior(denoiser, training_scheduler(), *INPAINTING, eta=1.0)


@torch.no_grad()
def samples(prior: DiffusionPrior, noise: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images 3 side side"]:
    """Images that a prior makes out of noise, with its whole chain and without further noise; colors from 0 to 1."""
    whole = DiffusionPrior(prior.denoiser, prior.scheduler, prior.chain, prior.chain, eta=0.0)
    return whole.denoised(noise).clamp(0, 1)
