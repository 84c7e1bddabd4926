"""Texts written before, indexed for continuation. Knows token ids, not models."""
