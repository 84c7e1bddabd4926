"""Draft, verify, commit: the loop and its parts."""
