"""Encoding: texts in, vectors out."""
