"""Intervals, tests and corrections, over seeds and over test images. Nothing here knows a record or a method."""
