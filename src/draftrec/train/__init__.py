"""Training for recommendation: targets, what they say, and draft models aligned to them."""
