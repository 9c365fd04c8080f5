"""What a network holds in memory: its tensors, counted.

A quantized layer holds some that torch does not know as parameters or buffers: codes, and the forms that kernels read.
"""

from torch import nn

from qdit.nn.linear import QuantLinear


def held(network: nn.Module) -> int:
    """Bytes of all tensors of a network as it is now, each counted once.

    Values that simulation needs are among them once a product has needed them, so it is asked after a call.
    """
    tensors = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        if isinstance(module, QuantLinear):
            tensors += module.tensors()
    return sum(each.numel() * each.element_size() for each in {id(each): each for each in tensors}.values())
