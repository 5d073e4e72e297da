"""Analyses of what a network learned, whose rows join the results table."""
