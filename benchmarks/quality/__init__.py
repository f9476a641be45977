"""Quality: studies over several seeds on real images."""
