"""Models: loading, shared-prefix attention, the log-prob head."""
