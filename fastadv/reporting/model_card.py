"""What others are told of a network: the card of its repository, and RobustBench's claim.

Both are written from the rows of a results table, so that no number is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastadv import __version__
from fastadv.errors import ConfigError
from fastadv.results.row import Row
from fastadv.text_tables import markdown_table
from fastadv.threat import TRAINING_KINDS, ThreatModel

# What the leaderboards of RobustBench measure, by data set and norm.
ROBUSTBENCH = {
    ("imagenet", "linf"): 4 / 255,
    ("cifar10", "linf"): 8 / 255,
    ("cifar10", "l2"): 0.5,
    ("cifar100", "linf"): 8 / 255,
}

_IMAGENET_IMAGES = 5000  # which RobustBench lists, of the validation images


def rows_of(rows: Sequence[Row], digest: str) -> list[Row]:
    """Return the evaluations and transfers of one network, the newest of each number."""
    found: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: row.time):
        if row.source.digest == digest and row.kind in ("evaluation", "transfer"):
            found[row.setting_key, row.target.name, str(row.attack), row.seed] = row
    return list(found.values())


def model_card(about: dict[str, Any], rows: Sequence[Row], repo: str) -> str:
    """Return the README.md of a network's repository, in Markdown with its header.

    Args:
        about: What `describe_source` returned.
        rows: Rows of the results table that are of the network; see `rows_of`.
        repo: Name of the repository, `org/name`.
    """
    training = "unknown"
    if about["eps"]:
        training = f"adversarial, {ThreatModel(about['norm'], about['eps'])}"
    elif about["eps"] == 0:
        training = "standard"
    if about["kind"] in ("texture", "other"):
        training = TRAINING_KINDS[about["kind"]]
    facts = {
        "architecture": about["arch"],
        "parameters": f"{about['parameters'] / 1e6:.2f} million",
        "training": training,
        "classes": about["num_classes"],
        "input": f"RGB images of {about['resolution']} px in [0, 1], minus mean "
        f"{about['mean']}, divided by std {about['std']}",
        "SHA-256 of the weights": about["state_hash"],
    }
    header = [
        "---",
        "library_name: fastadv",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, image-classification]",
        *_model_index(rows, repo),
        "---",
    ]
    lines = [
        *header,
        "",
        f"# {repo.rpartition('/')[2]}",
        "",
        *(f"* {name}: {value}" for name, value in facts.items()),
        "",
        "```python",
        "from fastadv import load_model",
        "",
        f'model = load_model("hf:{repo}", download=True)  # takes images in [0, 1]',
        "```",
        "",
        "## Results",
        "",
    ]
    if rows:
        lines += [
            markdown_table(
                ["data", "measured", "attack", "percent", "95 % interval", "images"],
                [_cells(row) for row in rows],
            ),
            "",
            "The intervals are over the draw of test images. What departs from a published "
            "protocol is said in the results table.",
        ]
    else:
        lines.append("None of the results table is of this network.")
    lines += ["", f"Written by fastadv {__version__} from its results table.", ""]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    interval = "" if row.low is None else f"{row.low:.1f} to {row.high:.1f}"
    what = row.metric if row.kind == "evaluation" else row.setting_label
    return [
        row.target.name or "",
        what,
        str(row.attack) if row.attack else "none",
        f"{row.value:.2f}",
        interval,
        str(row.n or ""),
    ]


def _model_index(rows: Sequence[Row], repo: str) -> list[str]:
    """Return the header's lines by which the hub shows results."""
    judged = [r for r in rows if r.kind == "evaluation" and r.metric == "top1"]
    if not judged:
        return []
    lines = ["model-index:", f"- name: {json.dumps(repo)}", "  results:"]
    for row in judged:
        attack = f", {row.attack}" if row.attack else ""
        lines += [
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {json.dumps(row.target.name)}, "
            f"type: {json.dumps(row.target.name)}}}",
            "    metrics:",
            f"    - {{type: accuracy, name: {json.dumps(row.metric + attack)}, "
            f"value: {row.value:.4f}}}",
        ]
    return lines


def robustbench_claim(
    rows: Sequence[Row],
    about: dict[str, Any],
    *,
    dataset: str,
    norm: str,
    link: str,
    title: str,
    authors: str,
    venue: str,
    additional_data: bool = False,
) -> dict[str, Any]:
    """Return the file of `model_info` that a submission to RobustBench holds.

    Args:
        rows: Rows of the results table that are of the network; see `rows_of`.
        about: What `describe_source` returned.
        dataset: `"cifar10"`, `"cifar100"` or `"imagenet"`.
        norm: `"linf"` or `"l2"`.
        link: Address of the paper.
        title: Title of the paper.
        authors: Authors of the paper.
        venue: Where it was published.
        additional_data: Whether it was trained with other data than the set's own.

    Raises:
        ConfigError: There is no such leaderboard, or the table lacks the clean accuracy or
            the one under AutoAttack at its radius.
    """
    eps = ROBUSTBENCH.get((dataset, norm))
    if eps is None:
        boards = ", ".join(f"{name} {norm}" for name, norm in ROBUSTBENCH)
        raise ConfigError(
            f"RobustBench has no leaderboard of {dataset} with {norm}; it has: {boards}"
        )
    ours = [r for r in rows if r.kind == "evaluation" and _is(r, dataset)]
    if dataset == "imagenet":
        ours = [row for row in ours if row.n == _IMAGENET_IMAGES]
    clean = [row for row in ours if row.attack is None and row.metric == "top1"]
    robust = [
        row
        for row in ours
        if row.attack is not None
        and row.metric == "top1"
        and row.attack.name == "autoattack"
        and row.attack.norm == norm
        and abs((row.attack.eps or 0) - eps) < 1e-9
        and row.metric == "top1"
    ]
    pairs = [(c, r) for r in robust for c in clean if c.experiment == r.experiment]
    if not pairs:
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        raise ConfigError(
            f"the results table holds no evaluation of this network on {dataset} by "
            f"AutoAttack with {threat}; run: fastadv-eval --checkpoint SOURCE --data "
            f"{dataset} --attack autoattack --norm {norm} --eps "
            f"{f'{eps * 255:g}/255' if norm == 'linf' else f'{eps:g}'}"
            + (" --image-list robustbench" if dataset == "imagenet" else "")
        )
    clean_row, robust_row = pairs[-1]
    text = f"{eps * 255:g}/255" if norm == "linf" else f"{eps:g}"
    return {
        "link": link,
        "name": title,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": venue,
        "architecture": about["arch"],
        "eps": text,
        "clean_acc": f"{clean_row.value:.2f}",
        "reported": f"{robust_row.value:.2f}",
        "autoattack_acc": f"{robust_row.value:.2f}",
    }


def _is(row: Row, dataset: str) -> bool:
    name = (row.target.name or "").lower().replace("-", "").replace("_", "")
    return name.partition(":")[2].endswith(dataset) or name.startswith(dataset)
