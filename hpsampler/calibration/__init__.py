"""Schedules fitted to one checkpoint: the fit, the profile that keeps it, the job that makes it."""
