"""What a training is made of: state, step, optimizer, faults, resume. `engine.train` is the loop over it.

Comes in: settings, ranks, batches. Goes out: trained weights and a position. Nothing here evaluates or shows anything.
"""
