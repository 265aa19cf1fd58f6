"""Ours, beyond the paper, and off unless asked for: what may follow a cut, and cuts while gates still train."""
