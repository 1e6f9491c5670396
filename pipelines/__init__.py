"""Data: annotation formats, the memory-mapped index, stateless augmentation, DALI graphs."""
