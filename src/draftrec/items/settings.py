"""How semantic ids are made of items' vectors, and histories of items become prompts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Annotated, Any

from draftrec.knobs import knob


@dataclass(frozen=True)
class PromptFormat:
    """Texts around and between the items of a history, of which the last `max_items` are kept."""

    prefix: Annotated[str, knob("Text before the items of a prompt.")] = ""
    separator: Annotated[str, knob("Text between items.")] = ""
    suffix: Annotated[str, knob("Text after them.")] = ""
    max_items: Annotated[int, knob("Items of a history in a prompt.", ge=1)] = 20

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a JSON file; `PromptFormat(**found)` is the way back."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class QuantiseSettings:
    """`levels` codes per item out of `codes` each.

    No code of a level holds more than `max_load` times the items of an even split. `rounds`: how
    often centroids follow their capped clusters.
    """

    levels: Annotated[int, knob("Codes per item.", ge=1, le=26)] = 4
    codes: Annotated[int, knob("Codes to choose from per level.", ge=2, le=65536)] = 256
    max_load: Annotated[
        float, knob("No code of a level gets more than this times its even share.", ge=1)
    ] = 1.5
    rounds: int = 3
    seed: Annotated[int, knob("Seed of the fit.", ge=0)] = 0

    def cap(self, items: int) -> int:
        """The most items that one code of a level may hold."""
        return max(1, ceil(self.max_load * items / self.codes))


@dataclass(frozen=True, slots=True)
class RqVaeSettings:
    """`dim` numbers per latent; `hidden` sizes of the encoder's layers, the decoder has them the
    other way round; `commitment` weighs how far latents stay from their codes."""

    dim: Annotated[int, knob("Numbers per latent vector.", ge=1)] = 32
    hidden: tuple[int, ...] = (512, 256, 128)
    epochs: Annotated[int, knob("Passes over all vectors.", ge=1)] = 100
    learning_rate: float = 1e-3
    commitment: float = 0.25


@dataclass(frozen=True, slots=True)
class FactorSettings:
    """How items' vectors are made of who took them."""

    factors: Annotated[int, knob("Numbers per vector.", ge=1)] = 32
    seed: Annotated[int, knob("Seed of the factors.", ge=0)] = 0
