"""Attacks on a trained model: pure functions of token log-probabilities.

A higher score always means "more likely a member".
"""
