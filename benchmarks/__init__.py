"""What must be fast, measured in one run; ratios where a ratio exists. They import neither mlflow nor optuna nor dvc."""
