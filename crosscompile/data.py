"""Files that travel with the distribution but lie outside the packages: boards/, runtime_c/ and examples/."""

from __future__ import annotations

from pathlib import Path


def data_path(name: str) -> Path:
    """The directory `name`, "boards" say: packaged in the wheel, else beside the packages in a checkout.

    Raises FileNotFoundError if neither has it, which means that the installation is incomplete.
    """
    checkout = Path(__file__).resolve().parent.parent
    for path in (checkout / "edgellm" / "_data" / name, checkout / name):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"edgellm's {name}/ is missing below {checkout}; install edgellm again")
