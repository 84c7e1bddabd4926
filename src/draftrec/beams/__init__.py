"""Top-K items by beam search: plain, or with beams that were drafted and the target verifies."""
