"""The setting that pays, by measurement."""
