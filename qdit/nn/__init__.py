"""The modules of a quantized network, which checkpoints hold: layers, quantizers, changes of basis, attention."""
