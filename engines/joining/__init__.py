"""Requests of several clients drawn in one batch."""
