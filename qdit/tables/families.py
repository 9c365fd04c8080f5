"""Families: the headings under which tables list methods, as papers do; a recipe has its own: `quantizer.family`."""

FAMILIES = {"baseline": "Baselines", "dit": "DiT methods", "hybrid": "Hybrids"}
"""Key of a recipe → title of its group, in the order of the table."""
OTHER = "Other methods"  # of recipes that name no family, last
KEY = "quantizer.family"


def title(family: object) -> str:
    """Return the title of a family's group; a family of one's own goes by its own name, none at all by `OTHER`."""
    return FAMILIES.get(str(family), str(family)) if isinstance(family, str) and family else OTHER


def rank(family: object) -> tuple[int, str]:
    """Return where a family's group stands: the known ones first, then others by name, then those without."""
    known = list(FAMILIES)
    if family in known:
        return (known.index(str(family)), "")
    return (len(known), str(family)) if isinstance(family, str) and family else (len(known) + 1, "")
