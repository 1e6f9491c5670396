"""GPU kernels of the engine, each beside its PyTorch reference. Imports torch and triton only."""
