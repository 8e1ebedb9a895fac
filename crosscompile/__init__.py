"""Compile language models for small boards: arguments in, values or files out. No network, no terminal."""
