"""ImageNet-1k as a target of generation: 1,000 classes; neither images nor class names are shipped."""

from dataclasses import dataclass

from qdit.dataset.base import Dataset
from qdit.dataset.labels import FrequencyLabels
from qdit.model.base import DiffusionModel


@dataclass(kw_only=True)
class ImageNet(Dataset):
    """Captions are `class 207`; the class frequencies are not shipped, so labels are random or balanced."""

    def check(self, model: DiffusionModel) -> list[str]:
        """Describe each mismatch; labels cannot follow the data's frequencies."""
        problems = super().check(model)
        if isinstance(self.strategy, FrequencyLabels):
            problems.append(
                f"dataset {self.name} ships no class frequencies for FrequencyLabels; use "
                "dataset.strategy._target_=qdit.dataset.labels.RandomLabels or BalancedLabels"
            )
        return problems
