"""Writes reading_modules.h beside this file: the modules that measure a GPU's memory, as the compiler makes them now.

python runtime_c/vulkan/reading_modules.py      (in the checkout, with the project's environment)
"""

from pathlib import Path

from crosscompile.gpu.reading import reading_header

if __name__ == "__main__":
    Path(__file__).with_suffix(".h").write_text(reading_header())
