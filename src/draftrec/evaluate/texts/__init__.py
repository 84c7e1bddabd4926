"""How good texts are, by themselves and beside others."""
