"""The HTTP service, metrics for Prometheus, and the dashboard."""
