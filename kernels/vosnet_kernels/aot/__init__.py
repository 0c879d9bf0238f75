"""Compile every Triton kernel for GPUs that need not be present, and report what the compilers made of it.

    python -m vosnet_kernels.aot [--target sm_80 --target sm_90 --target gfx942] [--json FILE]

Prints registers, spills, shared memory and matrix instructions per kernel. Exits with 1 if a kernel spills
registers, needs more shared memory than the target has, or multiplies matrices without its matrix units.
"""
