"""Native kernels for the CPU: C++ built once per machine, called through a plain C interface."""
