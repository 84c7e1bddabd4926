"""The same jobs on a Ray cluster: the workers are actors, the job keeps its own ledger."""
