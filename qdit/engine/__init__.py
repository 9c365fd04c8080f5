"""Engines of others that run a whole network, with the codes and ranges that qdit found."""
