"""What a classifier relies on: counterfactual regions (masks) and minimum correct filters."""
