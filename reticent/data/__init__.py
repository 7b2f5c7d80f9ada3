"""Where records come from, whose they are, and how they become tokens. Knows no torch."""
