"""`python -m engine.report RUN`: one HTML page about a training."""
