"""A learned drafter: one layer over the target's own last hidden states."""
