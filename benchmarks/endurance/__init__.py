"""Long trials of what must not break."""
