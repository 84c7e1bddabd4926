"""Training targets, recording what they would recommend, and aligning drafts with that."""
