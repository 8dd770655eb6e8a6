"""What users declare. Frozen nouns (nouns.py), their loader (loader.py), and the grammar of an amount (amount.py)."""
