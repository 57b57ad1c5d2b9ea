"""Training and joint retraining: loss terms, counterfactual images, the training loop."""
