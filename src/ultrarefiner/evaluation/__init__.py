"""Scores of masks, their summary and the comparison of methods."""
