"""Saving and loading a quantized model: one folder of plain JSON beside safetensors, never a pickle."""
