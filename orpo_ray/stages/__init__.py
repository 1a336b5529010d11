"""Training runs, sweeps and evaluations of which some read what others make: who comes when, and at once with whom."""
