"""TIR device functions to SPIR-V, in Python: no shader compiler is needed, neither here nor on a board."""
