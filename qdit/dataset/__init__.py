"""Datasets as qdit needs them: classes, how labels are drawn, and the name of the reference statistics."""
