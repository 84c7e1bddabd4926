"""Commands of generative recommendation."""
