"""What a training step costs: its floating-point operations, what it sends, and the rates of devices."""
