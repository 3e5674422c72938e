"""Logs and metrics: names in one place."""
