"""Both jobs on embedded data and models: plain, strict and relaxed side by side."""
