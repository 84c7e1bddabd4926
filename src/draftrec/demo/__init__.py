"""The whole story on embedded data and an embedded model: baseline, strict and relaxed."""
