"""Training draft heads on texts that knowledge jobs have written."""
