"""Texts: drafted trees, verified and cut down to a path."""
