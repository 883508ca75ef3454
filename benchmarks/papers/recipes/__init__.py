"""All rows, by network. Settings were chosen on images that no network trained on."""

from __future__ import annotations

from papers.recipe import Recipe

from .characters import CHARACTERS
from .lenet5 import LENET5
from .lenet300 import LENET300
from .resnet32 import RESNET32
from .spoken_digits import SPOKEN_DIGITS

RECIPES: dict[str, Recipe] = {**LENET300, **LENET5, **RESNET32, **SPOKEN_DIGITS, **CHARACTERS}
