"""Batched image augmentations: float tensors in [0, 1], in and out, on the tensor's own device.

Every function draws one set of parameters per image from an explicit `torch.Generator`.
Normalisation is the encoder's, afterwards.

Shapes: B = batch, C = channels, H, W = rows and columns in pixels.
"""
