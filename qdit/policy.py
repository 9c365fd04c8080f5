"""`Policy`: the whole decision of a quantization, site by site, as plain values that are saved beside the result."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from qdit.errors import UserError
from qdit.quant.spec import QuantSpec
from qdit.store import atomic_write


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """How a site's weight and input are quantized; None leaves it in full precision."""

    weight: QuantSpec | None
    activation: QuantSpec | None

    @property
    def weight_bits(self) -> int:
        """Bits of the weight, 16 where it is not quantized."""
        return self.weight.bits if self.weight else 16

    @property
    def activation_bits(self) -> int:
        """Bits of the input, 16 where it is not quantized."""
        return self.activation.bits if self.activation else 16

    def __str__(self) -> str:
        return ", ".join(f"{key} {spec or 'in 16 bits'}" for key, spec in vars(self).items())


class Policy(dict[str, LayerSpec]):
    """Site name -> `LayerSpec`."""

    def tree(self) -> dict[str, dict[str, dict | None]]:
        """Plain values; `Policy.of` is the inverse."""
        return {
            name: {key: spec.as_dict() if spec else None for key, spec in vars(layer).items()}
            for name, layer in self.items()
        }

    @classmethod
    def of(cls, tree: dict[str, dict[str, dict | None]]) -> "Policy":
        """The policy of plain values."""
        return cls(
            {
                name: LayerSpec(**{k: QuantSpec(**v) if v else None for k, v in layer.items()})
                for name, layer in tree.items()
            }
        )

    def save(self, path: Path) -> None:
        """Write `policy.yaml`."""
        atomic_write(path, yaml.safe_dump({"policy": self.tree()}, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read `policy.yaml`.

        Raises:
            UserError: the file is missing or not a policy.
        """
        try:
            return cls.of(yaml.safe_load(path.read_text())["policy"])
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a policy file ({type(error).__name__}: {error})") from error
