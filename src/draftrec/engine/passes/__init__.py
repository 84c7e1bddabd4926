"""The ways of running a model over packed rows, and the kernels that they are made of."""
