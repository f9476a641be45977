"""Schedulers only: what a study's stages are, as commands, for whatever runs them at night."""
