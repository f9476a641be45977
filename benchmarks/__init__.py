"""What svp costs and what it gives, measured."""
