"""What others see of a run while it goes on: metrics for Prometheus, trackers, structured logs."""
