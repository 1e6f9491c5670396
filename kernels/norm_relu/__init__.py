"""BatchNorm (training mode), an optional sum with a residual, and ReLU in one operator with its own gradient."""

from kernels.norm_relu.op import norm_relu
from kernels.norm_relu.reference import norm_relu_gradient, norm_relu_reference

__all__ = ["norm_relu", "norm_relu_gradient", "norm_relu_reference"]
