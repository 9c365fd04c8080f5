"""What runs in a quantized network, and what a checkpoint may hold: layers, quantizers, changes of basis, attention."""
