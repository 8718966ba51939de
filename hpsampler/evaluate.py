"""``python -m hpsampler.evaluate``, see :mod:`hpsampler.evaluation.cli`."""

from .evaluation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
