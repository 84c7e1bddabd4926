"""Beams: drafted levels, verified and cut down to the best."""
