"""The quality bench: samplers, schedules, endings, Free-U and guidance on exact problems and on the tiny model."""
