"""What the accordion must do on any page that has it: the demonstration's (in CI) and the WebUI's."""
