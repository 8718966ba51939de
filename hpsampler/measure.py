"""``python -m hpsampler.measure``, see :mod:`hpsampler.statistics.cli`."""

from .statistics.cli import main

if __name__ == "__main__":
    main()
