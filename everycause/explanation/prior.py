"""Image priors: filters that pull a changed image back towards what images of its data set look like.

An adversarial attack changes pixels in ways that no image has. Seen through a diffusion model it has to change what the
model would paint: the image is mixed with noise up to step τ of the model's chain, and the model removes the noise
again, in τ steps (Jeanneret, Simon, Jurie, CVPR 2023, section 3.1: the filter F_τ). The gradient of a classifier passes
through all of these steps.

The model is a U-Net that estimates the noise in an image (Ho, Jain, Abbeel, NeurIPS 2020), trained on the training
images of the task itself (everycause.explanation.prior_training). Network and chain are those of the library diffusers,
which is imported when one is built.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Bool, Float, Int64

GROUPS, HEAD = 8, 32
"""Groups of the U-Net's normalization, and channels of a head of its attention, at its coarsest resolution."""
LOW_PASS = 1 / 32
"""Standard deviation of the blur of the pixel attack, as a share of the image's side."""

Pixels = Float[Tensor, "batch 3 height width"]
"""Colors from 0 to 1."""


class PriorParams(Section):
    """The diffusion model that counterfactual images are made with, and its training."""

    source: str = Field(min_length=1)
    """`trained` by the stage train_prior; `none`, which leaves a pixel attack; or the folder of a pipeline that
    diffusers saved (an unconditional DDPM of images of the same size, with values from −1 to 1)."""
    patch: int = Field(ge=1, le=8)
    """Side of the squares of pixels that the U-Net takes as one: 2 costs a quarter of 1."""
    channels: list[int] = Field(min_length=1, max_length=6)
    """Channels of the U-Net at each resolution, from the finest; each resolution halves the one before."""
    epochs: int = Field(ge=1, le=100_000)
    """Passes over the training images."""
    batch_size: int = Field(ge=1, le=100_000)
    """Images per step."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak of AdamW's learning rate; a tenth of the steps leads up to it, the others down along a cosine."""
    average: float = Field(ge=0, lt=1)
    """Decay per step of the moving average of the weights, which is the result."""

    @model_validator(mode="after")
    def _channels_form_groups(self) -> "PriorParams":
        for count in self.channels:
            if count < GROUPS or count % GROUPS or (count == self.channels[-1] and count % HEAD):
                raise ValueError(
                    f"channels holds {count}: every number must be a multiple of {GROUPS}, the last one of {HEAD}"
                )
        return self


class ImageNoise:
    """Normal noise for each image of a batch, from a generator of its own.

    So what happens to an image depends neither on the other images of its batch nor on their number.
    """

    def __init__(self, seeds: list[int], side: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape, self._device, self._dtype = (3, side, side), device, dtype

    def draw(self) -> Float[Tensor, "batch 3 side side"]:
        """The next noise of every image; it is drawn on the CPU, so that all devices see the same."""
        drawn = [torch.randn(self._shape, generator=one, dtype=self._dtype) for one in self._generators]
        return torch.stack(drawn).to(self._device)


@runtime_checkable
class Prior(Protocol):
    """A filter of changed images."""

    label: str
    """What it is, for tables and records."""

    def filtered(self, images: Pixels, originals: Pixels, noise: ImageNoise) -> Pixels:
        """Changed images as the prior would have them; gradients pass through."""
        ...

    def refined(
        self, images: Pixels, originals: Pixels, kept: Bool[Tensor, "batch height width"], noise: ImageNoise
    ) -> Pixels:
        """Changed images, repainted by the prior where they are not `kept`; there they are the originals, exactly."""
        ...


@dataclass(frozen=True)
class LowPassPrior:
    """The prior of the pixel attack: the image itself, and no fine patterns in what is added to it."""

    label: str = "pixel attack"

    def filtered(self, images: Pixels, originals: Pixels, noise: ImageNoise) -> Pixels:
        """The originals and a blur of the change."""
        deviation = LOW_PASS * images.shape[-1]
        side = 2 * round(3 * deviation) + 1
        return originals + gaussian_blur(images - originals, [side, side], [deviation, deviation])

    def refined(
        self, images: Pixels, originals: Pixels, kept: Bool[Tensor, "batch height width"], noise: ImageNoise
    ) -> Pixels:
        """The filtered images, with the originals where these are kept."""
        filtered = self.filtered(images, originals, noise).clamp(0, 1)
        return torch.where(kept[:, None], originals, filtered)


@dataclass(frozen=True)
class DiffusionPrior:
    """Noise up to step τ of a respaced chain, and τ steps of denoising.

    Raises:
        UserError: the chain has fewer than τ steps, or more than the model was trained with.
    """

    denoiser: nn.Module
    """Estimates the noise in images with values from −1 to 1, from these and the step of the chain."""
    scheduler: Any
    """A diffusers scheduler; its noise variances, what the network predicts and whether values are clipped are used."""
    chain: int
    """Steps of the respaced chain."""
    tau: int
    """Steps of it that are taken, τ."""
    eta: float
    """Noise that denoising adds at every step, as a share of that of the DDPM chain: 1 is DDPM, 0 is DDIM."""
    checkpointed: bool = False
    """Whether activations are computed again for the gradient instead of kept: less memory, a third more time."""
    label: str = "diffusion"
    steps: list[int] = field(init=False)
    """The steps that are taken, in the chain of the training, the noisiest first."""

    def __post_init__(self) -> None:
        from diffusers import DDIMScheduler

        trained = self.scheduler.config.num_train_timesteps
        if not self.tau <= self.chain <= trained:
            raise UserError(
                f"counterfactuals.tau is {self.tau} and counterfactuals.chain {self.chain}: τ must not be larger than "
                f"the chain, nor the chain than the {trained} steps that the prior was trained with"
            )
        settings = dict(self.scheduler.config) | {"timestep_spacing": "leading", "steps_offset": 0}
        respaced = DDIMScheduler.from_config(settings, set_alpha_to_one=True)
        respaced.set_timesteps(self.chain)
        object.__setattr__(self, "scheduler", respaced)
        object.__setattr__(self, "steps", respaced.timesteps[-self.tau :].tolist())

    def filtered(self, images: Pixels, originals: Pixels, noise: ImageNoise) -> Pixels:
        """Images that were mixed with noise and denoised. The originals are not looked at."""
        return self.denoised(self._noised(2 * images - 1, 0, noise), noise)

    def denoised(self, noisy: Tensor, noise: ImageNoise | None = None) -> Pixels:
        """Noisy images after all steps of denoising; without `noise` none is added, and η must be 0."""
        for number in range(self.tau):
            noisy = self._denoised(noisy, number, noise)
        return (noisy + 1) / 2

    @torch.no_grad()
    def refined(
        self, images: Pixels, originals: Pixels, kept: Bool[Tensor, "batch height width"], noise: ImageNoise
    ) -> Pixels:
        """As filtered, while the originals, as noisy as the rest, take the kept places after every step.

        Source: Lugmayr et al., RePaint, CVPR 2022, without its repetitions; ACE, section 3.3.
        """
        current = self._noised(2 * images - 1, 0, noise)
        for number in range(self.tau):
            current = self._denoised(current, number, noise)
            current = torch.where(kept[:, None], self._noised(2 * originals - 1, number + 1, noise), current)
        return torch.where(kept[:, None], originals, ((current + 1) / 2).clamp(0, 1))

    def _noised(self, images: Tensor, number: int, noise: ImageNoise) -> Tensor:
        """Images as they are before the given step of denoising; after the last one they are without noise."""
        if number == self.tau:
            return images
        share = self.scheduler.alphas_cumprod[self.steps[number]].to(images)
        return share.sqrt() * images + (1 - share).sqrt() * noise.draw()

    def _denoised(self, images: Tensor, number: int, noise: ImageNoise | None) -> Tensor:
        """One step towards images without noise."""
        step = torch.full((len(images),), self.steps[number], device=images.device)
        if self.checkpointed and images.requires_grad:
            estimated = checkpoint(self.denoiser, images, step, use_reentrant=False)
        else:
            estimated = self.denoiser(images, step)
        return self.scheduler.step(
            estimated, self.steps[number], images, eta=self.eta, use_clipped_model_output=True,
            variance_noise=noise.draw() if self.eta and noise is not None else None,
        ).prev_sample  # fmt: skip


class Denoiser(nn.Module):
    """A U-Net that estimates the noise in images with values from −1 to 1, over squares of pixels.

    Raises:
        UserError: the image size cannot be halved as often as there are resolutions.
    """

    def __init__(self, params: PriorParams, image_size: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # takes seconds to import, and every stage reads this module's params

        levels = len(params.channels) - 1
        if image_size % (params.patch * 2**levels):
            raise UserError(
                f"prior.patch {params.patch} and {levels + 1} prior.channels need an image size that is a multiple of "
                f"{params.patch * 2**levels}, and the images have {image_size} pixels: name fewer channels"
            )
        values = 3 * params.patch**2
        self.patch = params.patch
        self.unet = UNet2DModel(
            sample_size=image_size // params.patch,
            in_channels=values,
            out_channels=values,
            block_out_channels=tuple(params.channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * levels + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * levels,
            norm_num_groups=GROUPS,
            attention_head_dim=HEAD,
        )

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], step: Int64[Tensor, "batch"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The noise in images at a step of the chain."""
        estimated = self.unet(pixel_unshuffle(images, self.patch), step).sample
        return pixel_shuffle(estimated, self.patch)
