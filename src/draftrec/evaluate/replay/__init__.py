"""Recorded texts written again: what drafts would have been worth."""
