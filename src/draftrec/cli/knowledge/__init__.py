"""Commands of knowledge generation, and of what its texts are worth."""
