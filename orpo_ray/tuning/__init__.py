"""Ray Tune over whole training runs: which settings to try, when to stop, what is best."""
