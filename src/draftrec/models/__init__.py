"""Target models. The only floor that touches transformers."""
