"""What a run, an evaluation and a sweep keep: folders, locks, metrics, checkpoint files, and their copies."""
