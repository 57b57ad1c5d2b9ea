"""everycause: find the causes that an image classifier relies on, and retrain it until it has learned every one.

    import everycause
    explanation = everycause.explain(model, "photo.jpg")   # any torch.nn.Module that returns logits
    explanation.plot("explanation.png")

What the packages compute:

    base        f = argmin CE(f(x), y)                                                      training.fit
    filters     G_c = {k : h_ck > t · max_k h_ck},  h_c = Σ M(x) over confident x of class c   explanation.filters
                M(x) = the minimum correct filters of a head per class                      explanation.heads
    masks       S(x) = greedy argmin |S|  s.t.  argmax f(x \\ S) ≠ y                          explanation.masks
    images      x' = x·(1 − S) + b·S,  b: natural background of other images                 training.counterfactuals
    joint       L = CE(f(x), y) + λ_aug CE(f(x'), y) − λ1 L_MC(x) + λ2 L_nonMC(x)            training.loss
    truth       which parts of a rendered bird suffice for its class, from coding theory     codebirds.codes
    evaluation  accuracy on shifted splits, completeness, reliance per part                  evaluation

Papers: SS-CA, arXiv 2511.12100; counterfactual concept debugging, arXiv 2501.11087.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["Explainer", "Explanation", "UserError", "explain"]
_HOMES = {
    "Explainer": "everycause.explainer",
    "Explanation": "everycause.explainer",
    "explain": "everycause.explainer",
    "UserError": "everycause.errors",
}


def __getattr__(name: str) -> Any:
    """The front door, imported when it is asked for: no stage depends on it, and importing the package stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'everycause' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
