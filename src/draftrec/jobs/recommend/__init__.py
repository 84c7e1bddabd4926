"""Recommending items: models, catalogue and histories in, items with scores out."""
