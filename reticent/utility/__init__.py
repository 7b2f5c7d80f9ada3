"""What the model is still good for: perplexity and multiple-choice accuracy, from token log-probabilities."""
