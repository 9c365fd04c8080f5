"""Quantized models that leave: what of other formats a layer can become, folders of theirs, and a card beside them."""
