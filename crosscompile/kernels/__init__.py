"""Kernels as TIR: the linear layer as a schedulable S-TIR function, the rest written directly in 16-lane vectors."""
