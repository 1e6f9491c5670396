"""`python -m bench.gpu`: what a first GPU is to check and time, in order, within a budget of minutes."""
