"""everycause: find the causes that an image classifier relies on, and retrain it until it has learned every one.

    base        f = argmin CE(f(x), y)                                                      training.fit
    filters     G_c = {k : h_ck > t · max_k h_ck},  h_c = Σ M(x) over confident x of class c   explanation.filters
                M(x) = the minimum correct filters of a head per class                      explanation.heads
    masks       S(x) = greedy argmin |S|  s.t.  argmax f(x \\ S) ≠ y                          explanation.masks
    images      x' = x·(1 − S) + b·S,  b: natural background of other images                 training.counterfactual
    joint       L = CE(f(x), y) + λ_aug CE(f(x'), y) − λ1 L_MC(x) + λ2 L_nonMC(x)            training.objective
    truth       which parts of a rendered bird suffice for its class, from coding theory     data.codes
    evaluation  accuracy on shifted splits, completeness, reliance per part                  evaluation

Papers: SS-CA, arXiv 2511.12100; counterfactual concept debugging, arXiv 2501.11087.
"""
