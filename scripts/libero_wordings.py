"""Write conf/wordings/libero.yaml: other ways to say the instructions of LIBERO's four suites, for `data.wordings`.

    python scripts/libero_wordings.py

Verbs, prepositions, names of things and articles are exchanged for others that mean the same. Sentences that LIBERO-PRO
tests with are left out, so that its suites stay a test.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import yaml

from statevla.worlds.libero.exchange import exchanged_goals
from statevla.worlds.libero.tasks import suite_names, suite_tasks

FILE = Path(__file__).parents[1] / "conf" / "wordings" / "libero.yaml"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
COUNT, TRIES, SEED = 16, 400, 0
KEPT = 0.4
"""How likely a phrase stays as it is, and an article."""
SAME = {
    r"\bpick up\b": ["grab", "take", "lift", "pick", "get", "grasp"],
    r"\bplace it\b": ["put it", "set it", "lay it", "place it down"],
    r"^put\b|(?<=and )put\b": ["place", "set", "move"],
    r"^turn on the stove$": ["turn the stove on", "switch the stove on", "start the stove", "heat up the stove"],
    r"\bturn on\b": ["switch on", "activate", "light"],
    r"^open\b": ["pull open", "slide open"],
    r"^push\b": ["slide", "move", "shove"],
    r"\bclose it\b": ["shut it", "push it shut", "close that"],
    r"\bnext to\b": ["beside", "near", "close to", "by"],
    r"\bbetween the plate and the ramekin\b": [
        "between the ramekin and the plate",
        "in the middle of plate and ramekin",
        "that stands between the plate and the ramekin",
    ],
    r"\bfrom table center\b": [
        "from the center of the table",
        "in the middle of the table",
        "at the table's center",
        "in the table center",
    ],
    r"\bin the top drawer of the wooden cabinet\b": [
        "in the cabinet's top drawer",
        "from the upper drawer of the cabinet",
        "inside the top drawer",
        "in the open drawer",
        "in the top drawer of the cabinet",
        "in the uppermost layer of the wooden cabinet",
    ],
    r"\bon the wooden cabinet\b": ["on the cabinet", "on top of the wooden cabinet", "that stands on the cabinet"],
    r"\bon the cookie box\b": ["on top of the cookie box", "from the box of cookies", "on the cookies"],
    r"\bon the ramekin\b": ["on top of the ramekin", "from the ramekin", "in the ramekin"],
    r"(?<=black bowl )on the stove(?= and)": ["from the stove", "on top of the stove", "standing on the stove"],
    r"\bcookie box\b": ["box of cookies", "cookies", "cookies box"],
    r"\bblack bowl\b": ["bowl", "dark bowl", "akita black bowl", "black dish"],
    r"\bthe bowl\b": ["the black bowl", "the akita black bowl"],
    r"\b(on|onto) the plate$": ["onto the plate", "on top of the plate", "on the dish"],
    r"\bin the basket\b": ["into the basket", "inside the basket", "in the bin"],
    r"\bon top of the cabinet\b": ["on the cabinet", "on the top of the wooden cabinet", "on the cabinet's top"],
    r"\b(top|middle|bottom) drawer of the cabinet\b": [
        r"\1 drawer",
        r"cabinet's \1 drawer",
        r"\1 level of the cabinet",
        r"\1 drawer of the wooden cabinet",
    ],
    r"\bthe (top|middle|bottom) drawer(?= and)": [r"the \1 drawer of the cabinet", r"the cabinet's \1 drawer"],
    r"\btop (?=drawer|level)": ["upper ", "uppermost "],
    r"\bbottom (?=drawer|level)": ["lowest ", "lower "],
    r"\bmiddle (?=drawer|level)": ["second ", "center "],
    r"\binside$": ["in it", "into it", "there"],
    r"\bto the front of the stove\b": ["in front of the stove", "to the stove's front side", "before the stove"],
    r"\bon the rack\b": ["on the wine rack", "onto the rack", "in the rack"],
    r"\bwine bottle\b": ["bottle of wine", "bottle", "wine"],
    r"\bcream cheese( box)?\b": ["cream cheese", "cream cheese box", "cream cheese package"],
    r"\bboth the ([a-z ]+?) and the ([a-z ]+?)(?= in)": [
        r"the \1 and the \2",
        r"the \2 and the \1",
        r"first the \1 and then the \2",
    ],
    r"\bboth moka pots\b": ["the two moka pots", "the moka pots"],
    r"\bmoka pot\b": ["coffee pot", "moka maker", "espresso pot"],
    r"\byellow and white mug\b": ["white and yellow mug", "mug in yellow and white", "yellow white cup"],
    r"\b(white|red) mug\b": [r"\1 cup", r"\1 coffee mug", r"mug that is \1"],
    r"\bin the back compartment of the caddy\b": [
        "in the rear compartment of the caddy",
        "in the caddy's back compartment",
        "into the back of the caddy",
    ],
    r"\bto the right of the plate\b": ["right of the plate", "on the right of the plate", "at the plate's right side"],
    r"\bon the (left|right) plate\b": [r"on the plate on the \1", r"onto the \1 plate"],
    r"\bfrying pan\b": ["pan", "frypan", "skillet"],
    r"\bin the microwave\b": ["into the microwave", "inside the microwave oven"],
    r"\bin the (bottom|top|middle) drawer\b": [r"into the \1 drawer", r"inside the \1 drawer"],
}  # fmt: skip
"""Phrase → others, applied in this order."""


def main() -> None:
    tasks = [task for suite in SUITES for task in suite_tasks(suite)]
    goals = [goal.instruction for task in tasks for goal in exchanged_goals(task)]
    instructions = list(dict.fromkeys([*(task.instruction for task in tasks), *goals]))
    tested = [task.instruction for name in suite_names() if name.count("_") > 1 for task in suite_tasks(name)]
    taken = {plain(text) for text in [*instructions, *tested]}
    draw, found = random.Random(SEED), {}
    for instruction in instructions:
        own: dict[str, str] = {}
        for _ in range(TRIES):
            text = reworded(instruction, draw)
            if plain(text) not in taken and len(own) < COUNT:
                own.setdefault(plain(text), text)
        taken |= own.keys()
        found[instruction] = list(own.values())
    head = f"# Written by scripts/{Path(__file__).name}; what LIBERO-PRO tests with is left out.\n"
    FILE.write_text(head + yaml.safe_dump(found, sort_keys=False, width=118))
    print(f"{FILE}: {sum(map(len, found.values()))} wordings of {len(found)} instructions")


def reworded(instruction: str, draw: random.Random) -> str:
    """An instruction with some of its phrases exchanged, and some of its articles left out."""
    text = instruction
    for pattern, others in SAME.items():
        if draw.random() > KEPT:
            text = re.sub(pattern, draw.choice(others), text)
    if draw.random() > KEPT:
        text = re.sub(r"\bthe ", lambda found: found[0] if draw.random() < KEPT else "", text)
    return text


def plain(text: str) -> str:
    """What of a sentence tells it from others: no articles, no marks."""
    return re.sub(r"[^a-z ]", "", re.sub(r"\bthe ", "", text.lower()))


if __name__ == "__main__":
    main()
