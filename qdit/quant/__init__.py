"""Quantization maths: pure functions on tensors. No diffusers, no Hydra, no state."""
