"""The adapter: the only code that imports the WebUI's ``modules.*``."""
