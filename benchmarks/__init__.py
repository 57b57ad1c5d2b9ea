"""Measures of speed, taken in one run; ratios where there is one. They import neither mlflow nor optuna nor dvc."""
