"""Pretraining on the user's own pool: BYOL, its EMAN form, and SimCLR."""
