"""`orpo-ray status`: where a run, an evaluation or a sweep stands, read from its folder alone."""
