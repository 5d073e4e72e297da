"""Names of splits: which role a name has, and which split is evaluated on.

Data sets spell their splits in many ways (`train`, `Training`, `img_train`; `val`, `valid`,
`dev`; `test`, `eval`). There is one order whatever the spelling: validation before test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

Role = Literal["train", "val", "test"]
T = TypeVar("T")

# Words that name a role, the usual spelling first.
WORDS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "tst", "t10k"),
}
_ROLES: dict[str, Role] = {
    word: role for role, words in WORDS.items() for word in words
}
# Spellings in the order in which they are evaluated on.
EVAL_WORDS = (*WORDS["val"], *WORDS["test"])


_MORE = re.compile(r"(?<=[a-z])(sets?|data|images?|imgs?|split)$")


def exact_role(name: str) -> Role | None:
    """Return the role that a name as a whole stands for, whatever its case, or None.

    It may end in what it is of: `TrainSet`, `testdata`.
    """
    word = name.lower()
    return _ROLES.get(word) or _ROLES.get(_MORE.sub("", word))


def word_role(name: str) -> Role | None:
    """Return the role that one word of a name stands for (`cars_train`, `test2017`), or None.

    A name with words of two roles, like `train_val_lists`, has none.
    """
    words = re.split(r"[^a-z]+", re.sub(r"t10k", "test", name.lower()))
    found = {role for word in words if (role := exact_role(word))}
    return found.pop() if len(found) == 1 else None


def roles_of(names: Iterable[str]) -> dict[str, Role]:
    """Return the role of each name that has one, in the order of the names.

    Names that are exactly a word count first. Names of several words count where no name
    is one, and where both a training split and another one are among them: a class may be
    called `dev_board`.
    """
    names = list(names)
    exact = {name: role for name in names if (role := exact_role(name))}
    if exact:
        return exact
    by_word = {name: role for name in names if (role := word_role(name))}
    return by_word if len(set(by_word.values())) > 1 and _has_train(by_word) else {}


def _has_train(roles: Mapping[str, Role]) -> bool:
    return "train" in roles.values()


def evaluation_order(names: Iterable[str]) -> list[str]:
    """Return the names of evaluation splits in the order in which they are preferred.

    Args:
        names: Names of splits; those without a role and training splits are left out.
    """

    def place(name: str) -> tuple[int, int, str]:
        role = exact_role(name) or word_role(name)
        word = name.lower()
        spelled = EVAL_WORDS.index(word) if word in EVAL_WORDS else len(EVAL_WORDS)
        return (0 if role == "val" else 1), spelled, name

    def is_held(name: str) -> bool:
        return (exact_role(name) or word_role(name)) in ("val", "test")

    return sorted((name for name in names if is_held(name)), key=place)


def training_name(names: Iterable[str]) -> str | None:
    """Return the name of the training split among names of splits, or None."""
    found = [n for n in names if (exact_role(n) or word_role(n)) == "train"]
    return min(found, key=lambda n: (n != "train", n), default=None)
