"""Runs and the service, live on a page."""
