"""Runs side by side: what they reached, how sure that is, and whether they may be compared at all."""
