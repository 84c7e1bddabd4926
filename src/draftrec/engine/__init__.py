"""One pass of a model over drafts, and what it is good for: texts and beams."""
