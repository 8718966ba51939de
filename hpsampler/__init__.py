"""HP Sampler: good images in 5 to 8 UNet calls, by hyperparameters alone (arXiv 2510.02390).

The method, in the order in which data flows: :mod:`~hpsampler.noise` (the model's noise table),
:mod:`~hpsampler.schedule` (where to stop, how to space), :mod:`~hpsampler.guidance` (what scale each call gets),
:mod:`~hpsampler.recipes` (what goes with what), :mod:`~hpsampler.solvers`, :mod:`~hpsampler.freeu`;
:mod:`~hpsampler.settings` is what a person may change of it.

Around it: :mod:`~hpsampler.golden` (a better first latent), :mod:`~hpsampler.statistics` and
:mod:`~hpsampler.calibration` (what is measured on one checkpoint), :mod:`~hpsampler.evaluation` (pictures scored).
:mod:`hpsampler.webui` is the adapter to AUTOMATIC1111's WebUI, the only part that imports it.
"""

__version__ = "0.9.1"
