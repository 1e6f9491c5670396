"""The folder of a run: who may write it, where it comes from, its metrics, what is shown, W&B.

Comes in: records and lines of text. Goes out: files, a terminal's lines, W&B. No torch.
"""
