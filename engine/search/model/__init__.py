"""What the search believes: the surrogate, the learning curves, and which trials to stop."""
