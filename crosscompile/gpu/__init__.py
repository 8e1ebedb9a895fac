"""Kernels for GPUs: what they compute is what the CPU's do, within rounding; how is for thousands of threads."""
