"""Colors of rows and selectors, the same in every figure."""

COLORS = {
    "base": "#888888",
    "continued": "#222222",
    "filters": "#d98c00",
    "filters_random": "#e8cf9f",
    "filters_permuted": "#b9a57f",
    "masks": "#0072b2",
    "masks_scene": "#56b4a9",
    "masks_random": "#a9c8e8",
    "counterfactual_images": "#17becf",
    "counterfactual_pairs": "#e6550d",
    "counterfactual_images_random": "#9edae5",
    "counterfactual_pairs_random": "#fdae6b",
    "joint": "#b3005e",
    "masks_rounds": "#5b2a86",
    "object_exchange": "#00838f",
    "oracle_parts": "#3a9d23",
    "masks_grad_cam": "#7a6a53",
    "masks_factual": "#c46a3f",
    "masks_fido": "#2f8f6b",
    "masks_cell_swap": "#b48ead",
    "masks_cam": "#8f7f2f",
    "erasing": "#c9b458",
    "cutmix": "#8c8c3a",
    "patch_replacement": "#a0522d",
    "masked_distillation": "#6b8e23",
    "self_challenging": "#cd5c5c",
    "spectral_decoupling": "#4682b4",
    "group_dro": "#9370db",
}
"""Row → color."""
OTHER, OPTIMUM = "#009e73", "#3a9d23"
SELECTOR_COLORS = {
    "counterfactual": "#0072b2",
    "factual": "#d98c00",
    "bidirectional": "#b3005e",
    "grad_cam": "#009e73",
    "filter_cam": "#56b4e9",
    "fido": "#8c564b",
    "cell_swap": "#e377c2",
    "cam_masks": "#bcbd22",
    "cam_masks_context": "#dbdb8d",
    "random": "#999999",
}
"""Selector → color."""
