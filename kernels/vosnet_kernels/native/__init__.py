"""C++ kernels for the CPU, compiled by the machine's own compiler at first use and kept in a cache."""
