"""Run by the Makefile before it installs anything: whether this Python is one that the requirements are made for.

Understood by every Python 3, as an old one must be told in words too.
"""

import sys

OLDEST, NEWEST = (3, 10), (3, 13)


def complaint(version):
    """A sentence where the version (major, minor, ..) is none of ours, and nothing where it is."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ""
    return (
        "HP Sampler's tests and demonstration need Python {}.{} to {}.{}, and this is {}.{}. "
        "Name another one, such as: make test PYTHON=python3.12"
    ).format(*OLDEST, *NEWEST, *version[:2])


if __name__ == "__main__":
    sys.exit(complaint(sys.version_info) or None)
