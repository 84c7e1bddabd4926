"""Items as tokens: semantic ids, the trie of those that exist, prompts of histories."""
