"""Gives each label a colour, a hatch and a letter. The figure and the page show the same ones."""

from dataclasses import dataclass

from zfserve_studies.figures.style import CATEGORIES, HATCHES, LETTERS, OTHERS
from zfserve_studies.occlusion.study import OccludedPhoto

MOST = 7
"""So many labels have a colour of their own. The colours of more labels are hard to tell apart."""


@dataclass(frozen=True)
class Category:
    """Describes how the places of a label are drawn.

    Attributes:
        indices: the classes. Only the last category may have several.
        label: the label, or how many other labels there are.
        count: the number of places.
        letter: the letter.
        colour: the colour, as "#rrggbb".
        hatch: the hatch, as matplotlib names it.
    """

    indices: tuple[int, ...]
    label: str
    count: int
    letter: str
    colour: str
    hatch: str


def categories(result: OccludedPhoto) -> list[Category]:
    """Returns a category for each label: first the class of the study, then the most frequent ones, then all others."""
    wanted = result.occlusion.plan.for_class.index
    counted = sorted(result.counted_labels(), key=lambda each: each[0] != wanted)
    found = [
        Category((index,), label, count, LETTERS[at], CATEGORIES[at], HATCHES[at])
        for at, (index, label, count) in enumerate(counted[:MOST])
    ]
    if rest := counted[MOST:]:
        indices = tuple(index for index, _, _ in rest)
        places = sum(count for _, _, count in rest)
        found.append(Category(indices, f"{len(rest)} other labels", places, "-", OTHERS, ""))
    return found
