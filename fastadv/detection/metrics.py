"""Average precision of boxes and masks, as COCO defines it, with intervals over images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.detection.coco_objects import (
    annotation,
    area_of,
    coco_eval,
    encode_masks,
)
from fastadv.detection.matching import (
    AREAS,
    IOU_THRESHOLDS,
    Floats,
    average_precision,
    class_matches,
    image_pair,
)

log = logging.getLogger(__name__)

Named: TypeAlias = Mapping[str, Any]
"""Named of one image by torchvision's convention: `boxes` float [N, 4] (x1, y1, x2, y2 in
pixels), `labels` int64 [N] from 1, `masks`, and `scores` of detections."""

_TYPES: dict[Literal["box", "mask"], str] = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class Estimate:
    """An average precision with its 95 % interval over the draw of images.

    Attributes:
        value: The average precision, in [0, 1].
        low: Lower end of the interval; None without one.
        high: Upper end of the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DetectionMetrics:
    """Average precisions of detections on images.

    Attributes:
        values: The estimates by name: `box_ap` (mean over the thresholds 0.5 to 0.95 of
            the intersection over union), `box_ap50`, `box_ap75`, `box_ap_small`,
            `box_ap_medium`, `box_ap_large`, and `box_ap:CLASS` of each class; of masks
            likewise with `mask_ap`. What the images have no object for is left out.
        num_images: Number of images.
        num_objects: Number of objects that were to be found.
    """

    values: dict[str, Estimate]
    num_images: int
    num_objects: int


@dataclass
class Findings:
    """Detections and true objects of images, collected image by image.

    Masks are kept as run lengths, so that thousands of images fit into memory.

    Args:
        classes: Names of the classes; label k is `classes[k - 1]`.
        masks: Whether masks are judged, too.
    """

    classes: Sequence[str]
    masks: bool = False
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    _true: list[dict[str, Any]] = field(default_factory=list)
    _found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: Named, true: Named) -> None:
        """Add one image.

        Args:
            found: What was detected: `boxes`, `labels`, `scores` [D], and of masks the
                probabilities `masks` [D, 1, H, W] in [0, 1] (bool or uint8 masks
                [D, H, W] will do, and so do COCO's run lengths as `runs`).
            true: The objects: `boxes`, `labels`, `image_id`, `iscrowd` [G] (crowd regions
                are neither to be found nor wrong to find), `area` [G] in pixels (that of
                masks or else boxes where it is missing), and `masks` uint8 [G, H, W].

        Raises:
            ValueError: Labels are no classes, tensors do not fit together, an image comes
                twice, or masks are wanted and missing.
        """
        image = int(true["image_id"])
        if image in self._sizes:
            raise ValueError(f"image_id={image} comes twice; each image counts once")
        place = {"image_id": image}
        objects = self._objects("true", true)
        crowd, areas = true.get("iscrowd"), true.get("area")
        for i, each in enumerate(objects):
            each |= place | {"id": len(self._true) + 1}
            each["iscrowd"] = 0 if crowd is None else int(crowd[i])
            each["area"] = area_of(each) if areas is None else float(areas[i])
            self._true.append(each)
        scores = np.asarray(torch.as_tensor(found["scores"]).double().cpu())
        detections = self._objects("found", found)
        if scores.shape != (len(detections),) or not np.isfinite(scores).all():
            raise ValueError(
                f"`scores` of {len(detections)} detections must be as many finite "
                f"numbers, got {scores.tolist()}"
            )
        for each, score in zip(detections, scores.tolist(), strict=True):
            self._found.append(each | place | {"score": score})
        masks = true.get("masks")
        height, width = (0, 0) if masks is None else masks.shape[-2:]
        self._sizes[image] = (height, width)

    def add_arrays(
        self, arrays: Mapping[str, NDArray[Any]], targets: Sequence[Named]
    ) -> None:
        """Add the images of which `arrays` returned the detections.

        Args:
            arrays: What `arrays` returned.
            targets: The objects of these images, in the order of `image_ids`.

        Raises:
            ValueError: They are of other images; see also `add`.
        """
        known = arrays["image_ids"].tolist()
        given = [int(target["image_id"]) for target in targets]
        if known != given:
            raise ValueError(
                f"detections are of the images {known}, targets of {given}; give those of "
                "the same images"
            )
        for position, target in enumerate(targets):
            mine = np.flatnonzero(arrays["image"] == position)
            found: dict[str, Any] = {
                name: torch.from_numpy(arrays[name][mine])
                for name in ("boxes", "labels", "scores")
            }
            if self.masks:
                found["runs"] = [
                    {"counts": bytes(arrays["mask_runs"][i]), "size": size}
                    for i, size in zip(
                        mine, arrays["mask_sizes"][mine].tolist(), strict=True
                    )
                ]
            self.add(found, target)

    @property
    def image_ids(self) -> list[int]:
        """The images, in the order in which they were added."""
        return list(self._sizes)

    def _objects(self, what: str, given: Named) -> list[dict[str, Any]]:
        boxes = torch.as_tensor(given["boxes"]).detach().double().cpu().numpy()
        labels = torch.as_tensor(given["labels"]).cpu().numpy()
        boxes = boxes.reshape(-1, 4) if not boxes.size else boxes
        if boxes.shape != (len(labels), 4):
            raise ValueError(
                f"{what} boxes have shape {list(boxes.shape)} and labels "
                f"{list(labels.shape)}; expected [N, 4] and [N]"
            )
        if len(labels) and not (
            labels.min() >= 1 and labels.max() <= len(self.classes)
        ):
            raise ValueError(
                f"{what} labels go from {labels.min()} to {labels.max()}; expected 1 to "
                f"{len(self.classes)}, since 0 is the background"
            )
        runs: list[Any] = [None] * len(labels)
        if self.masks:
            if "runs" in given:
                runs = given["runs"]
            elif "masks" not in given:
                raise ValueError(
                    f"masks are to be judged, but the {what} objects have none; give "
                    "`masks`, or judge boxes alone"
                )
            else:
                runs = encode_masks(torch.as_tensor(given["masks"]), len(labels))
        return [
            {"category_id": int(label), "box": box.tolist(), "runs": mask}
            for label, box, mask in zip(labels, boxes, runs, strict=True)
        ]

    def metrics(self, *, resamples: int = 1000, seed: int = 0) -> DetectionMetrics:
        """Return the average precisions of all images.

        Values are those of `faster-coco-eval`. Intervals are percentiles over samples of
        as many images, drawn with replacement, and say nothing about the draw of training
        images or seeds.

        Args:
            resamples: Number of samples; 0 gives no intervals. Time grows with samples
                times detections: a thousand samples of 10,000 detections take twelve
                seconds on one core, and masks as long again.
            seed: Seed of the samples.

        Raises:
            ConfigError: The package `faster-coco-eval` is missing.
        """
        values: dict[str, Estimate] = {}
        counts = _samples(len(self.image_ids), resamples, seed)
        for what in _TYPES:
            if what == "box" or self.masks:
                values |= self._judge(what, counts)
        objects = sum(not each["iscrowd"] for each in self._true)
        return DetectionMetrics(values, len(self.image_ids), objects)

    def _judge(
        self, what: Literal["box", "mask"], counts: NDArray[np.int64]
    ) -> dict[str, Estimate]:
        if not self.image_ids:
            return {}
        coco = coco_eval()
        truth, detected = self._as_coco(what, coco)
        judge = coco.COCOeval_faster(
            truth, detected, _TYPES[what], print_function=log.debug
        )
        judge.evaluate()
        judge.accumulate()
        # [T, R, K, A]; -1 where there is nothing to be found.
        found = np.where(
            judge.eval["precision"][..., -1] < 0,
            np.nan,
            judge.eval["precision"][..., -1],
        ).mean(1)
        precision = found.transpose(2, 0, 1)[None]
        values = _named(precision, what, self.classes)
        spread: dict[str, NDArray[np.float64]] = {}
        if len(counts):
            samples = self._resampled(truth, detected, judge.ious, counts)
            spread = _named(samples, what, self.classes)
        return {
            name: Estimate(float(value[0]), *_ends(spread.get(name)))
            for name, value in values.items()
            if not np.isnan(value[0])
        }

    def _as_coco(self, what: str, coco: Any) -> tuple[Any, Any]:
        """Return the true objects and the detections as objects of `faster-coco-eval`."""
        truth = coco.COCO()
        truth.dataset = {
            "images": [
                {"id": i, "height": h, "width": w} for i, (h, w) in self._sizes.items()
            ],
            "categories": [
                {"id": k, "name": name} for k, name in enumerate(self.classes, 1)
            ],
            "annotations": [annotation(each, what) for each in self._true],
        }
        truth.createIndex()
        return truth, truth.loadRes([annotation(each, what) for each in self._found])

    def _resampled(
        self,
        truth: Any,
        detected: Any,
        ious: Mapping[tuple[int, int], Any],
        counts: NDArray[np.int64],
    ) -> Floats:
        """Return the average precision of each sample, area, threshold and class.

        Returns:
            float64 [B, A, T, K].
        """
        images = sorted(self.image_ids)
        found = np.full(
            (len(counts), len(AREAS), len(IOU_THRESHOLDS), len(self.classes)), np.nan
        )
        for k in range(len(self.classes)):
            pairs = [
                image_pair(truth, detected, ious.get((image, k + 1)), image, k + 1)
                for image in images
            ]
            for a, bounds in enumerate(AREAS.values()):
                matches = class_matches(pairs, bounds)
                if matches.objects.any():
                    found[:, a, :, k] = average_precision(matches, counts)
        return found

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the detections as arrays, from which any metric follows.

        Returns:
            `image_ids` int64 [N], the images; and of the D detections `image` (position
            among these) int32 [D], `boxes` float32 [D, 4] (x1, y1, x2, y2 in pixels),
            `labels` int32 [D], `scores` float32 [D], and where there are masks `mask_runs`
            (COCO's compressed run lengths) as bytes [D] and `mask_sizes` int32 [D, 2].
        """
        place = {image: i for i, image in enumerate(self.image_ids)}
        found = self._found
        arrays: dict[str, NDArray[np.generic]] = {
            "image_ids": np.array(self.image_ids, np.int64),
            "image": np.array([place[each["image_id"]] for each in found], np.int32),
            "boxes": np.array([each["box"] for each in found], np.float32).reshape(
                -1, 4
            ),
            "labels": np.array([each["category_id"] for each in found], np.int32),
            "scores": np.array([each["score"] for each in found], np.float32),
        }
        if self.masks:
            runs = [each["runs"] for each in found]
            arrays["mask_runs"] = np.array([each["counts"] for each in runs], np.bytes_)
            sizes = np.array([each["size"] for each in runs], np.int32)
            arrays["mask_sizes"] = sizes.reshape(-1, 2)
        return arrays


def detection_metrics(
    predictions: Sequence[Named],
    targets: Sequence[Named],
    classes: Sequence[str],
    *,
    masks: bool | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DetectionMetrics:
    """Judge detections by the average precision that COCO defines.

    Args:
        predictions: What was detected in each image; see `Findings.add`.
        targets: The objects of each image, in the same order.
        classes: Names of the classes; label k is `classes[k - 1]`.
        masks: Whether masks are judged, too; None judges them where all of both have some.
        resamples: Number of samples for the intervals; see `Findings.metrics`.
        seed: Seed of the samples.

    Raises:
        ValueError: Numbers of images differ, or an image does not fit; see `Findings.add`.
        ConfigError: The package `faster-coco-eval` is missing.

    Source:
        Lin et al. 2014 (Microsoft COCO), whose `pycocotools` gives the same values.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
        >>> true = {"boxes": box, "labels": torch.tensor([1]), "image_id": 7}
        >>> found = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.ones(1)}
        >>> detection_metrics([found], [true], ["cat"]).values["box_ap"].value
        1.0
    """
    if len(predictions) != len(targets):
        raise ValueError(
            f"there are predictions of {len(predictions)} images and targets of "
            f"{len(targets)}; give one of each for every image"
        )
    if masks is None:
        masks = bool(targets) and all(
            "masks" in each for each in (*predictions, *targets)
        )
    findings = Findings(classes, masks)
    for found, true in zip(predictions, targets, strict=True):
        findings.add(found, true)
    return findings.metrics(resamples=resamples, seed=seed)


# ---- parts ----


def _samples(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image is in each sample, [B, N]."""
    if resamples < 0:
        raise ValueError(f"resamples={resamples} must be at least 0")
    if not images or not resamples:
        return np.zeros((0, images), np.int64)
    draw = np.random.default_rng(seed)
    return draw.multinomial(images, np.full(images, 1 / images), size=resamples)


def _named(
    precision: Floats, what: str, classes: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return means of average precisions [B, A, T, K] by name, each [B]; NaN of nothing."""
    first = precision[:, 0]
    parts = {
        f"{what}_ap": first,
        f"{what}_ap50": first[:, :1],
        f"{what}_ap75": first[:, 5:6],
    }
    for a, name in enumerate(AREAS):
        if name != "all":
            parts[f"{what}_ap_{name}"] = precision[:, a]
    for k, name in enumerate(classes):
        parts[f"{what}_ap:{name}"] = first[..., k : k + 1]
    return {name: _mean(part.reshape(len(part), -1)) for name, part in parts.items()}


def _mean(values: Floats) -> NDArray[np.float64]:
    """Return the mean of each row over what is not NaN."""
    known = ~np.isnan(values)
    number = known.sum(1)
    total = np.where(known, values, 0).sum(1)
    result: NDArray[np.float64] = np.where(
        number > 0, total / np.maximum(number, 1), np.nan
    )
    return result


def _ends(samples: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    if samples is None or np.isnan(samples).all():
        return None, None
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return float(low), float(high)
