"""Run by the WebUI at its start: says what is too old, installs nothing, and never stops the start.

Everything HP Sampler needs (torch, numpy, k-diffusion) comes with the WebUI.
"""

from __future__ import annotations

from importlib import metadata

NEEDED = {"torch": (2, 0), "numpy": (1, 26)}
"""Oldest versions that the tests run on."""


def version_of(text: str) -> tuple[int, ...]:
    """The first two numbers of a version such as "2.1.2+cu121"."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+")[0].split(".")[:2])


def complaints(needed: dict[str, tuple[int, int]]) -> list[str]:
    """One sentence for each package that is missing or too old."""
    found = []
    for package, oldest in needed.items():
        wanted = ".".join(map(str, oldest))
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.append(f"HP Sampler needs {package} {wanted} or newer, which is not installed.")
            continue
        if version_of(version) < oldest:
            found.append(f"HP Sampler needs {package} {wanted} or newer, found {version}.")
    return found


if __name__ == "__main__":
    for sentence in complaints(NEEDED):
        print(sentence)
