"""Scores of what a model said, and the runners that make it speak."""
