"""The story: one file a verb. Each stage reads what the one before wrote and writes its own."""
