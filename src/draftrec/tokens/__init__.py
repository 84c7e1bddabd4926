"""Trees of tokens. Knows nothing of models."""
