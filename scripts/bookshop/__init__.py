"""A seeded, fictional bookshop: what the demos, their models, tests and benchmarks are made from.

The package ships what it needs of it as files; `scripts/make_shop.py` writes and checks them.
"""
