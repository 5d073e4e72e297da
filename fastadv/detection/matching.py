"""Which detections match which objects, and average precision of resampled images.

COCO's evaluation (`faster-coco-eval`) returns the average precision of all images. An
interval over the draw of images needs it for many samples of them. What a detection
matches does not depend on other images, so that it is found once; a sample then only
counts each image as often as it was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Least intersection over union of a match; AP is the mean over these."""

RECALLS = np.linspace(0, 1, 101)
"""Recalls that precision is read at."""

MOST_DETECTIONS = 100
"""Detections of one class in one image that count, those of the highest scores."""

AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Areas of objects in pixels, from the least to the largest, by name."""

# Elements of one intermediate array; more samples than fit are worked on in turn.
_ELEMENTS = 4_000_000

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def match(
    ious: Floats, ignored: Bools, crowd: Bools, outside: Bools
) -> tuple[Bools, Bools]:
    """Match the detections of one class in one image to its objects, as COCO does.

    In the order of their scores, detections take the object that they overlap most among
    those that are free; a crowd region is always free. An object that is to be ignored is
    taken only where no other one is.

    Args:
        ious: Intersection over union [D, G] of detections, best score first, and objects.
        ignored: Whether each object is a crowd region or of another size, [G].
        crowd: Whether each object is a crowd region, [G].
        outside: Whether each detection is of another size, [D].

    Returns:
        Whether each detection is right, and whether it is wrong, bool [T, D] each, at the
        `IOU_THRESHOLDS`. Those that are to be ignored are neither.
    """
    (many, objects), thresholds = ious.shape, IOU_THRESHOLDS
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    right = np.zeros((len(thresholds), many), bool)
    wrong = np.tile(~outside, (len(thresholds), 1))
    free = np.ones((len(thresholds), objects), bool)
    rows = np.arange(len(thresholds))
    for d in range(many if objects else 0):
        if ious[d].max() < thresholds[0]:
            continue
        fits = (free | crowd) & (ious[d] >= least)
        counted = fits & ~ignored
        counts = counted.any(1)
        usable = np.where(counts[:, None], counted, fits)
        matched = usable.any(1)
        # Of equal overlaps COCO's loop takes the last.
        value = np.where(usable, ious[d], -1.0)
        best = objects - 1 - value[:, ::-1].argmax(1)
        free[rows[matched], best[matched]] = False
        right[:, d] = matched & counts
        wrong[:, d] &= ~matched
    return right, wrong


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all of N images, best score first.

    Attributes:
        image: Position of the image of each detection, int64 [D].
        right: Whether each is right at each threshold, bool [T, D].
        wrong: Whether each is wrong, bool [T, D].
        objects: Number of objects to be found in each image, int64 [N].
    """

    image: NDArray[np.int64]
    right: Bools
    wrong: Bools
    objects: NDArray[np.int64]


def average_precision(found: Matches, counts: NDArray[np.int64]) -> Floats:
    """Return the average precision of one class in samples of the images.

    An image that was drawn twice counts as two equal images would.

    Args:
        found: The detections of the class.
        counts: How often each image is in each of B samples, [B, N].

    Returns:
        float64 [B, T] in [0, 1]; NaN where a sample has no object of the class.
    """
    samples, detections = len(counts), len(found.image)
    at_once = max(1, _ELEMENTS // max(1, detections * len(IOU_THRESHOLDS)))
    parts = [
        _average_precision(found, counts[begin : begin + at_once])
        for begin in range(0, samples, at_once)
    ]
    return np.concatenate(parts)


def _average_precision(found: Matches, counts: NDArray[np.int64]) -> Floats:
    total = torch.from_numpy((counts @ found.objects).astype(np.float64))[:, None, None]
    weights = torch.from_numpy(counts[:, found.image].astype(np.float64))[:, None]
    right, wrong = (
        (weights * torch.from_numpy(marks)).cumsum(2)
        for marks in (found.right, found.wrong)
    )
    if not len(found.image):
        mean = torch.zeros(len(counts), len(IOU_THRESHOLDS), dtype=torch.float64)
    else:
        recall = right / total
        precision = right / (right + wrong + np.spacing(1))
        # From the right, so that precision never rises with recall.
        envelope = precision.flip(2).cummax(2).values.flip(2)
        places = torch.from_numpy(RECALLS).expand(*recall.shape[:2], -1).contiguous()
        index = torch.searchsorted(recall, places)
        reached = index < recall.shape[2]
        read = envelope.gather(2, index.clamp_max(recall.shape[2] - 1))
        mean = (read * reached).mean(2)
    mean = torch.where(total[:, 0] > 0, mean, torch.nan)
    result: Floats = mean.numpy()
    return result


Pair: TypeAlias = tuple[Floats, Floats, Floats, Floats, NDArray[np.bool_]]


def image_pair(truth: Any, detected: Any, ious: Any, image: int, category: int) -> Pair:
    """Return what matching needs of the detections and objects of a class in an image.

    Args:
        truth: The objects, a `COCO` of faster-coco-eval.
        detected: The detections, likewise.
        ious: Their overlaps as its evaluation has computed them.
        image: Number of the image.
        category: Number of the class.

    Returns:
        Overlaps [D, G], scores and areas of detections [D], best score first, areas of
        objects [G], and whether they are crowd regions [G].
    """
    found = detected.loadAnns(detected.getAnnIds(imgIds=[image], catIds=[category]))
    true = truth.loadAnns(truth.getAnnIds(imgIds=[image], catIds=[category]))
    scores = np.array([each["score"] for each in found], np.float64)
    order = np.argsort(-scores, kind="stable")[:MOST_DETECTIONS]
    overlaps = np.zeros((len(order), len(true)))
    if overlaps.size:
        overlaps = np.asarray(ious, np.float64)
    return (
        overlaps,
        scores[order],
        np.array([each["area"] for each in found], np.float64)[order],
        np.array([each["area"] for each in true], np.float64),
        np.array([each["iscrowd"] for each in true], bool),
    )


def class_matches(pairs: Sequence[Pair], bounds: tuple[float, float]) -> Matches:
    """Match the detections of one class in every image.

    Args:
        pairs: What `image_pair` returned for each image.
        bounds: Least and largest area in pixels of the objects that count.
    """
    low, high = bounds
    image, right, wrong, objects = [], [], [], []
    for i, (ious, scores, sizes, areas, crowd) in enumerate(pairs):
        ignored = crowd | (areas < low) | (areas > high)
        outside = (sizes < low) | (sizes > high)
        of_image = match(ious, ignored, crowd, outside)
        right.append(of_image[0])
        wrong.append(of_image[1])
        image.append(np.full(len(scores), i))
        objects.append(int((~ignored).sum()))
    order = np.argsort(-np.concatenate([pair[1] for pair in pairs]), kind="stable")
    rights, wrongs = (np.concatenate(each, axis=1)[:, order] for each in (right, wrong))
    counts = (rights | wrongs).any(0)  # the others are ignored, and only take time
    return Matches(
        np.concatenate(image)[order][counts],
        rights[:, counts],
        wrongs[:, counts],
        np.array(objects, np.int64),
    )
