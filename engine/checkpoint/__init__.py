"""Checkpoints on disk: what is in them, how they are written whole, read without trust, and thrown away.

`store` reads and writes one, `writer` does it on a thread beside the training. Safetensors, JSON and YAML; no pickle.
"""
