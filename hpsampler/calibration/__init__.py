"""Schedules fitted to one checkpoint: the fit, the profile that stores it, and the job that runs it."""
