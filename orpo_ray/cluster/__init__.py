"""Speaking to Ray: the cluster one runs on or a small one of this machine, and processes that start at once."""
