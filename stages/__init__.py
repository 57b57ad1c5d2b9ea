"""The experiment: one thin script per DVC stage, composition only."""
