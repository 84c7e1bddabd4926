"""Records, templates, sequences: what goes into a job and how it is stored."""
