"""Sweeps: the only door to Optuna."""
