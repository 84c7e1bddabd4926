"""Tables in any common format, and what their columns hold."""
