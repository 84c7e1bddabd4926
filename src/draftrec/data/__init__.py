"""Records, templates, the fictional world: what goes into a job and how it is stored."""
