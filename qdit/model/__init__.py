"""Adapters of pretrained diffusion transformers."""
