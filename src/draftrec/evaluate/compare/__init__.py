"""Two runs side by side: figures, limits, a report."""
