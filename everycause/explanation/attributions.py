"""Attribution methods of Captum as selectors, beside the product's own: independent implementations, as published.

Each gives every pixel a score; a region's score is the mean of its pixels. Like the product's selectors they ask the
accelerated copy of the network, but for Grad-CAM, which reads a layer. Captum is not needed for anything else.
Sources: Captum (arXiv 2009.07896); Grad-CAM (Selvaraju et al., ICCV 2017); integrated gradients (Sundararajan et al.,
ICML 2017); occlusion (Zeiler and Fergus, ECCV 2014).
"""

from collections.abc import Callable
from math import isqrt
from types import ModuleType

import torch
from torch import Tensor

from everycause.errors import UserError
from everycause.explanation.ranking import Ranking, Request, ranking_by_map
from everycause.explanation.scoring import GRADIENT
from everycause.networks import evaluating
from everycause.shapes import Float, Int64

STEPS = 16
"""Gradients between the mean color and the image, of integrated gradients."""

Images = Float[Tensor, "batch 3 height width"]
Labels = Int64[Tensor, "batch"]


def library() -> ModuleType:
    """captum.attr.

    Raises:
        UserError: it is not installed.
    """
    try:
        from captum import attr  # here, because nothing else needs it
    except ImportError as error:
        raise UserError(
            "Captum's attributions need captum, which is not installed: pip install captum==0.9.0"
        ) from error
    return attr


def grad_cam(request: Request) -> Ranking:
    """LayerGradCam at the explained layer.

    Raises:
        UserError: captum is not installed.
    """
    method = library().LayerGradCam(request.classifier.network, request.classifier.explained_layer)
    maps = _maps(request, lambda images, labels: method.attribute(images, labels, relu_attributions=True))
    return ranking_by_map(request.task, maps, GRADIENT)


def integrated_gradients(request: Request) -> Ranking:
    """IntegratedGradients from the mean color to the image, summed over the color channels.

    Raises:
        UserError: captum is not installed.
    """
    method, at_once = library().IntegratedGradients(request.scorer.network), request.exact.batch_size
    maps = _maps(
        request, lambda images, labels: method.attribute(images, 0, labels, n_steps=STEPS, internal_batch_size=at_once)
    )
    return ranking_by_map(request.task, maps, GRADIENT * STEPS)


def occlusion(request: Request) -> Ranking:
    """Occlusion by the mean color in a window as large as a cell of the grid, moved from cell to cell.

    Raises:
        UserError: captum is not installed, or the regions are superpixels, which no window fits.
    """
    masking, method = request.task.masking, library().Occlusion(request.scorer.network)
    side, cells = masking.images.shape[-1], isqrt(masking.regions)
    if not masking.shared:
        raise UserError("Captum's occlusion moves a square window: set masks.partition to grid")
    window = side // cells
    maps = _maps(
        request,
        lambda images, labels: method.attribute(
            images, (3, window, window), (3, window, window), 0, labels, perturbations_per_eval=request.exact.batch_size
        ),
    )
    return ranking_by_map(request.task, maps, 1 + (-(-(side - window) // window) + 1) ** 2)


def _maps(request: Request, attribute: Callable[[Images, Labels], Tensor]) -> Float[Tensor, "images rows columns"]:
    """Attributions of every image, one image at a time, summed over channels."""
    masking, labels, found = request.task.masking, request.task.labels, []
    with evaluating(request.classifier), torch.enable_grad():
        for number in range(len(labels)):
            attributed = attribute(masking.images[number : number + 1], labels[number : number + 1])
            found.append(attributed.detach().float().sum(dim=1))
    return torch.cat(found)


ATTRIBUTIONS: dict[str, Callable[[Request], Ranking]] = {
    "captum_grad_cam": grad_cam,
    "captum_integrated_gradients": integrated_gradients,
    "captum_occlusion": occlusion,
}
"""Name in tables → its function."""
