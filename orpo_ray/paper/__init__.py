"""The paper remade by one command: its stages, what they cost, and its tables and figures beside the printed ones."""
