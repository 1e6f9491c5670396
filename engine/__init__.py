"""Training engine for DBNet text detection: training loop, search, evaluation, prediction."""
