"""Are queries, keys, values and probabilities quantized, and with which code-books?"""

from qdit.attention.base import Attend
from qdit.attention.uniform import UniformAttention

__all__ = ["Attend", "UniformAttention"]
