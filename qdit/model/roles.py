"""The role of a linear layer in a diffusion transformer, told by its module path: one table for all families.

A pattern is a path of which every part must match one part of a layer's path, from the right (`fnmatch`), so that
`proj_out` is not `proj_out_1` and `norm` not `norm1.linear`. The first pattern that matches counts; a family may put
its own before these. An attention whose keys come from another tensor than its queries is cross-attention: that is told
by what the layers read, and not by their names (`attn2` is a second self-attention in SD3.5).
"""

from collections.abc import Sequence
from fnmatch import fnmatch

ROLES = (
    "qkv",
    "attn_out",
    "ffn_up",
    "ffn_down",
    "cross_q",
    "cross_kv",
    "cross_out",
    "text_qkv",
    "text_out",
    "text_up",
    "text_down",
    "image_kv",
    "parallel_in",
    "parallel_out",
    "adaln",
    "modulation",
    "refiner",
    "embedder",
    "final",
)
"""What a linear site does; a scope picks sites by it."""
KIN = {
    "cross_q": "qkv",
    "cross_kv": "qkv",
    "image_kv": "qkv",
    "text_qkv": "qkv",
    "parallel_in": "qkv",
    "cross_out": "attn_out",
    "text_out": "attn_out",
    "text_up": "ffn_up",
    "text_down": "ffn_down",
    "parallel_out": "ffn_down",
    "modulation": "adaln",
}
"""What a role of other families is like, of those that a DiT has: so a list of these serves the other families, too."""
TOGETHER = {"cross_qkv": ("cross_q", "cross_kv")}
"""Names that stand for several roles."""

Patterns = Sequence[tuple[str, str]]
INSIDE: Patterns = (
    ("*.timestep_embedder.*", "embedder"),
    ("norm*.linear", "adaln"),
    ("norm.linear", "adaln"),
    ("*_mod.1", "adaln"),
    ("adaLN_modulation.*", "adaln"),
    ("to_q", "q"),
    ("to_k", "kv"),
    ("to_v", "kv"),
    ("add_q_proj", "text_qkv"),
    ("add_k_proj", "text_kv"),
    ("add_v_proj", "text_kv"),
    ("to_add_out", "text_out"),
    ("to_out.0", "out"),
    ("to_qkv_mlp_proj", "parallel_in"),
    ("attn.to_out", "parallel_out"),
    ("proj_mlp", "ffn_up"),
    ("proj_out", "parallel_out"),
    ("ff_context.net.0.proj", "text_up"),
    ("ff_context.net.2", "text_down"),
    ("ff_context.linear_in", "text_up"),
    ("ff_context.linear_out", "text_down"),
    ("txt_mlp.net.0.proj", "text_up"),
    ("txt_mlp.net.2", "text_down"),
    ("net.0.proj", "ffn_up"),
    ("net.2", "ffn_down"),
    ("linear_in", "ffn_up"),
    ("linear_out", "ffn_down"),
    ("linear_1", "ffn_up"),
    ("linear_3", "ffn_up"),
    ("linear_2", "ffn_down"),
    ("w1", "ffn_up"),
    ("w3", "ffn_up"),
    ("w2", "ffn_down"),
    ("conv_inverted", "ffn_up"),
    ("conv_point", "ffn_down"),
)
"""Inside the blocks. `q`, `kv` and `out` become self- or cross-attention by what they read."""
OUTSIDE: Patterns = (
    ("*refiner*.*", "refiner"),
    ("adaln_single.linear", "modulation"),
    ("time_embed.linear", "modulation"),
    ("time_proj", "modulation"),
    ("*modulation*.*", "modulation"),
    ("norm_out.linear", "modulation"),
    ("norm_out.linear_1", "modulation"),
    ("norm_out.linear_2", "final"),
    ("*embedder*.*", "embedder"),
    ("*embed*.*", "embedder"),
    ("*_embedder", "embedder"),
    ("x_embedder", "embedder"),
    ("caption_projection.*", "embedder"),
    ("patch_embedding", "embedder"),
    ("proj_in", "embedder"),
    ("*_in", "embedder"),
    ("proj_out*", "final"),
    ("final_layer.*", "final"),
)
"""Before and behind the blocks."""


def matches(name: str, pattern: str) -> bool:
    """Whether the last parts of a module's path are those of a pattern; a leading or trailing `*` part takes any.

    >>> matches("blocks.1.norm1.linear", "norm*.linear"), matches("proj_out_1", "proj_out")
    (True, False)
    >>> matches("embed.emb.timestep_embedder.linear_1", "*.timestep_embedder.*")
    True
    """
    parts, wanted = name.split("."), pattern.split(".")
    if wanted[0] == "*":
        wanted = wanted[1:]
    if wanted[-1] == "*":  # anything below
        head = wanted[:-1]
        return any(_same(parts[n : n + len(head)], head) for n in range(len(parts) - len(head)))
    return len(parts) >= len(wanted) and _same(parts[len(parts) - len(wanted) :], wanted)


def _same(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(fnmatch(part, pattern) for part, pattern in zip(parts, wanted, strict=True))


def named(name: str, patterns: Patterns) -> str | None:
    """The role that a table gives a layer by its name alone; None if no pattern matches."""
    return next((role for pattern, role in patterns if matches(name, pattern)), None)


def is_role(name: str) -> bool:
    """Whether a config may name a role so."""
    return name in ROLES or name in TOGETHER


def meant(role: str, roles: Sequence[str]) -> bool:
    """Whether a role, or the one that it is like (`KIN`), is one of a config's.

    >>> meant("cross_out", ["attn_out"]), meant("cross_out", ["ffn_up"]), meant("adaln", ["qkv"])
    (True, False, False)
    """
    return chosen(role, roles) or KIN.get(role) in roles


def chosen(role: str, roles: Sequence[str]) -> bool:
    """Whether a role is one of a config's, in which a name may stand for several."""
    return role in roles or any(role in TOGETHER.get(name, ()) for name in roles)


NETWORKS = ("transformer", "transformer_2")
"""Names of two networks of a pipeline in the module that holds both, which are those of its folders."""


def names_of(site: str) -> tuple[str, ...]:
    """What a site may be called: its name, and, where there are several networks, its name inside its own.

    >>> names_of("transformer_2.blocks.0.attn1.to_q"), names_of("blocks.0.attn1.to_q")
    (('transformer_2.blocks.0.attn1.to_q', 'blocks.0.attn1.to_q'), ('blocks.0.attn1.to_q',))
    """
    network, _, inside = site.partition(".")
    return (site, inside) if network in NETWORKS and inside else (site,)
