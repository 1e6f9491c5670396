"""Checkpoints on disk: what is in them, how they are written whole, read without trust, and thrown away.

Comes in: weights and a position. Goes out: folders of safetensors, JSON and YAML, and weights again; no pickle.
"""
