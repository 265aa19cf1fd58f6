"""Ours, beyond the paper, and off unless asked for: what may follow a cut."""
