"""Thresholds of probabilities with a guaranteed recall or precision."""
