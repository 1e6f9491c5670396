"""What a training is made of: state, step, optimizer, faults, resume. `engine.train` is the loop over it.

Comes in: settings, ranks, batches. Goes out: trained weights, a position, a summary.
"""
