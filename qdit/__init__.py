"""qdit: post-training quantization of diffusion transformers, as recipes of interchangeable parts."""

__version__ = "0.1.0"
