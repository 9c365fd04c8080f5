"""What the tests of searches share: a recipe in groups on the tiny model, and the run around it."""

import pytest
import torch

from qdit.activation import DynamicActivation
from qdit.calibration import CalibrationData
from qdit.dataset.base import Dataset
from qdit.dataset.labels import RandomLabels
from qdit.eval.paired import SQNR
from qdit.method import Method
from qdit.quant.ranges import MinMax
from qdit.rounding import Nearest
from qdit.sampler.ddim import DDIM
from qdit.scope import Scope
from qdit.search import Evolution
from qdit.search.budget import MeanGroup
from qdit.search.objective import Objective
from qdit.setting import Setting
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]


class Parts:
    """Makes recipes, searches and settings; every keyword replaces a default."""

    blocks = BLOCKS

    @staticmethod
    def recipe(**changes) -> Method:
        given = {
            "scope": Scope(roles=BLOCKS),
            "weight": WeightGrid(granularity="group", group_size=16, grid="asymmetric", range=MinMax()),
            "activation": DynamicActivation(granularity="group", group_size=16, grid="asymmetric"),
            "rounding": Nearest(),
            "weight_bits": 4,
            "activation_bits": 8,
            "calibration": None,
        }
        return Method(**given | changes)

    @staticmethod
    def objective(metric=None, **changes) -> Objective:
        given = {"name": "sqnr", "metric": metric or SQNR(), "num_samples": 3, "batch_size": 2}
        return Objective(**given | changes)

    def evolution(self, **changes) -> Evolution:
        given = {"budget": MeanGroup(at_least=16), "group_sizes": [8, 16, 32], "objective": self.objective()}
        return Evolution(**given | {"population": 4, "generations": 2, "top_k": 2, "preset": 16} | changes)

    @staticmethod
    def setting(folder=None, **changes) -> Setting:
        sampler = DDIM(name="ddim", steps=2, guidance=1.0, guided_channels=None, eta=0.0, spacing="leading")
        dataset = Dataset(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())
        return Setting(**{"sampler": sampler, "dataset": dataset, "folder": folder} | changes)

    @staticmethod
    def data() -> CalibrationData:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(6, 4, 8, 8, generator=generator)
        return CalibrationData(x, torch.linspace(0, 999, 6).long(), torch.arange(6), 4)


@pytest.fixture(scope="session")
def parts() -> Parts:
    return Parts()
