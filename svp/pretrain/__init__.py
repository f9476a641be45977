"""Pretraining on the user's own pool: BYOL and its EMAN form."""
