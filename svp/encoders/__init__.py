"""Pretrained networks as encoders: exact weights, exact preprocessing, one identity."""
