"""Drafters that draftrec's are compared with: `draftrec replay --drafter ngram --drafter trie`."""
