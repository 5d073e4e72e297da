"""The splits that a data set has, and the pair of training and evaluation made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastadv.data.sets.image_set import (
    Damage,
    DatasetSplits,
    ImageSet,
    check_classes,
    option_hint,
)
from fastadv.data.sets.split_names import (
    evaluation_order,
    exact_role,
    training_name,
    word_role,
)
from fastadv.data.sets.subsets import train_val_split
from fastadv.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSets:
    """A data set as it is stored: one or two splits.

    Attributes:
        name: The data set.
        sets: Images by name of the split: the training split, then the one to evaluate
            on; or the only split, which has no name where nothing says which it is.
        metric: The accuracy its literature reports.
        holdout: Share held out for evaluation where there is one split.
        strict: Whether an evaluation split that lacks classes is refused.
        checked: Whether classes without images are looked for at all.
        needs_training: Whether a single evaluation split cannot be trained on, since it is
            what is there of a folder with folders of splits.
    """

    name: str
    sets: Mapping[str, ImageSet]
    metric: str = "top1"
    holdout: float = 0.1
    strict: bool = True
    checked: bool = True
    needs_training: bool = False

    def pair(self, damage: Damage | None = None) -> DatasetSplits:
        """Return a training and an evaluation split; a part is held out of a single one.

        Args:
            damage: List to which classes without images are added instead of being raised.

        Raises:
            DataError: A class has no images, or there is an evaluation split only.
        """
        if len(self.sets) > 1:
            train, held = self.sets.values()
            hint = f"accept it by {option_hint('strict', 'false')}"
            if self.checked:
                check_classes(train, held, strict=self.strict, damage=damage, hint=hint)
            return DatasetSplits(self.name, train, held, self.metric)
        (only,) = self.sets.values()
        if self.needs_training and evaluation_order(self.sets):
            raise DataError(
                f"{self.name} has no train/ folder; found {only.split!r} alone, which can "
                "be judged on and not trained on. To hold a part of it out and train on "
                f"the rest, name the folder {only.split}/ itself"
            )
        check_classes(only, None, damage=damage)
        log.warning(
            "%s has one split only (%d images): %g of it, stratified, with seed 0, is held "
            "out for evaluation. For another split name both of them (folders train/ and "
            "val/, or files in one pattern like {train,val}-*.tar), or give %s; another "
            "share by holdout",
            self.name,
            len(only),
            self.holdout,
            option_hint("test", "PATH"),
        )
        train, held = train_val_split(only, self.holdout, seed=0)
        return DatasetSplits(self.name, train, held, self.metric)

    def judged(self) -> DatasetSplits:
        """Return the splits for judging a network: all images of data without training part.

        The `train` of a data set with one split that is no training split is that split.

        Raises:
            DataError: A class has no images.
        """
        (first, *rest) = self.sets
        if rest or (exact_role(first) or word_role(first)) == "train":
            return self.pair()
        only = self.sets[first]
        if not first and exact_role(self.name) not in ("val", "test"):
            log.warning(
                "%s has one split: all of its %d images are judged. A network that was "
                "trained on some of them should be judged on others",
                self.name,
                len(only),
            )
        return DatasetSplits(self.name, only, only, self.metric)


def split_order(
    names: Iterable[str], eval_split: str | None, where: str
) -> tuple[str | None, list[str]]:
    """Return the split to learn from, if there is one, and those to evaluate on in order.

    Args:
        names: Names of the splits; an empty name is that of what belongs to none, which
            is learnt from where nothing else is.
        eval_split: The only split to evaluate on.
        where: The data set in messages.

    Raises:
        DataError: There is no split of the name `eval_split`.
    """
    names = list(names)
    train = training_name(names) or ("" if "" in names else None)
    held = [n for n in [*evaluation_order(names), ""] if n in names and n != train]
    if eval_split is not None:
        if eval_split not in names:
            raise DataError(
                f"{where}: there is no eval_split={eval_split}; the splits are "
                f"{', '.join(names)}"
            )
        held = [eval_split]
    return train, held


def say_ignored(where: str, chosen: str, ignored: Sequence[str]) -> None:
    """Warn that splits are ignored which could be evaluated on, if there are any."""
    if ignored:
        log.warning(
            "%s: evaluating on %s; %s ignored. To evaluate there, give %s",
            where,
            chosen or "the rest",
            list(ignored),
            option_hint("eval_split", ignored[0]),
        )


def chosen_splits(
    sets: Mapping[str, ImageSet], eval_split: str | None, where: str
) -> dict[str, ImageSet]:
    """Return the split to learn from and the one to evaluate on, of splits with labels.

    Raises:
        DataError: There is no split of the name `eval_split`.
    """
    train, held = split_order(sets, eval_split, where)
    if held and eval_split is None:
        say_ignored(where, held[0], held[1:])
    kept = [*([] if train is None else [train]), *held[:1]]
    return {split: sets[split] for split in kept or list(sets)[:1]}
