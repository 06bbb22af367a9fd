"""The second engine: Metal kernels on NVIDIA GPUs, through clang's PTX and CUDA's driver."""
