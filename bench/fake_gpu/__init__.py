"""A GPU that is none: a CUDA runtime and driver that report H200s and write down what they are asked to do.

    environment = build.environment(devices=1)    # g++, 2 s once; a UserError says what is missing
    subprocess.run([sys.executable, "-m", ...], env=environment)

Real torch runs above it, and Inductor, Triton's driver, CUDA graph trees, DDP. Kernels compute nothing, and nothing
takes its time. What stands for cuDNN and cuBLAS is in `device`; `lowering` has what Inductor makes of a step.
"""
