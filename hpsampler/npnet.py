"""``python -m hpsampler.npnet``, see :mod:`hpsampler.golden.cli`."""

from .golden.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
