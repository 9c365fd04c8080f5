"""A run: from a composed config through stages that resume to a record."""
