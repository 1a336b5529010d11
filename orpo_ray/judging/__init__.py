"""Models that judge in words: how they are asked, how their answers are read, and where verdicts are kept."""
