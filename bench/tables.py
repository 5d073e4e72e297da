"""Writes the tables of README.md and docs/*.md, and what recipes/*.yaml say of their small
runs, from bench/results/*.jsonl.

    python bench/tables.py

Each table stands between `<!-- table NAME -->` and `<!-- end -->`, what a recipe reached at
`# Small:`, the end of its header; the rest of a page is left alone.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from harness import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "robust-accuracy.md",
    ROOT / "docs" / "statistics.md",
    ROOT / "docs" / "transfer.md",
    ROOT / "docs" / "studies" / "README.md",
]
_SLOT = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(name: str) -> list[dict[str, Any]]:
    """Rows of one benchmark."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").open()]


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    align = ["---" if i == 0 else "---:" for i in range(len(columns))]
    lines = [columns, align, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def spread(row: dict[str, Any], key: str) -> str:
    """A ratio with its range over the paired repeats."""
    low, high = row[f"{key}_range"]
    return f"{row[key]:.2f} [{low:.2f}, {high:.2f}]"


def steps() -> str:
    """Every case of bench_pgd_step."""
    rows = [
        [
            f"{r['norm']} {r['job']}",
            r["layout"],
            str(r["batch"]),
            f"{r['ms']['fastadv']:.2f}",
            f"{r['gb_per_s']:.1f}",
            f"{100 * r['share_of_copy']:.0f} %",
            f"{100 * r['share_of_triad']:.0f} %" if "share_of_triad" in r else "",
            spread(r, "faster_than_eager"),
            spread(r, "faster_than_compile"),
        ]
        for r in read("pgd_step")
    ]
    columns = [
        "job",
        "layout",
        "batch",
        "ms",
        "GB/s",
        "of copy",
        "of triad",
        "x eager",
        "x compile",
    ]
    return markdown(columns, rows)


def attacks() -> str:
    """Every case of bench_attack."""
    rows = [
        [
            r["arch"],
            "refresh of the view" if r["what"] == "refresh" else r["what"],
            "yes" if r["weight_gradients"] else "no",
            f"{r['seconds']:.3f}",
            f"{r['cpu_seconds']:.2f}",
            f"{r['images_per_s']:.2f}",
            "" if r["what"] == "refresh" else spread(r, "times_ours"),
        ]
        for r in read("attack")
        if not r["what"].startswith("train")
    ]
    columns = ["batch 16", "what", "weight gradients", "s", "CPU s", "images/s"]
    return markdown([*columns, "x fastadv's time"], rows)


STEP_NAMES = {
    "train, torch": "clean, PyTorch's convolutions",
    "train": "clean",
    "train, PGD-3": "PGD-3",
}


def training_steps() -> str:
    """The training steps of bench_attack, without its peers."""
    rows = [
        [
            r["arch"],
            STEP_NAMES[r["what"]],
            f"{r['seconds']:.3f}",
            f"{r['images_per_s']:.2f}",
            spread(r, "times_ours"),
        ]
        for r in read("training_steps")
        if r["what"] in STEP_NAMES
    ]
    columns = ["batch 16, 224 px", "training step", "s", "images/s"]
    return markdown([*columns, "x the time of the first"], rows)


def autoattack() -> str:
    """Every case and attack of bench_autoattack."""
    rows = [
        [
            f"{r['case']}, {r['images']} images",
            r["attack"],
            f"{100 * r['robust_acc']:.1f} %",
            f"{100 * r['robust_acc_package']:.1f} %",
            f"{r['seconds']:.1f}",
            f"{r['seconds_package']:.1f}",
            f"{r['faster_than_package']:.2f} x",
        ]
        for r in read("autoattack")
    ]
    columns = ["case", "after", "ours", "package", "s", "package, s", "faster"]
    return markdown(columns, rows)


def loaders() -> str:
    """Every loader of bench_loaders."""
    rows = [
        [
            f"{r['what']}, {r['side']} px",
            r["loader"],
            f"{r['images_per_s']:.0f}",
            spread(r, "times_dataloader"),
        ]
        for r in read("loaders")
    ]
    return markdown(["images", "loader", "images/s", "x DataLoader"], rows)


def training() -> str:
    """Every case of bench_training."""
    rows = [
        [
            r["what"],
            f"{r['images_per_s']:.1f}",
            f"{r['seconds']:.2f}",
            f"{spread(r, 'times_other')} x the time of {r['compared_with']}",
        ]
        for r in read("training")
    ]
    return markdown(["training", "images/s", "s", "compared"], rows)


def transfer() -> str:
    """Every case of bench_transfer."""
    rows = [
        [
            f"{r['images']} at {r['resolution']} px",
            f"{r['features_s']:.1f}",
            f"{r['heads_s']:.1f}",
            f"{r['grid_of_one_pass']:.2f}",
            f"{r['run_over_ours']:.0f} x",
        ]
        for r in read("transfer")
    ]
    columns = ["images", "features, s", "60 heads, s", "grid / one pass"]
    return markdown([*columns, "one published run / our grid"], rows)


def convs() -> str:
    """Every case of bench_conv."""
    layers: dict[str, list[str]] = {}
    for r in read("conv"):
        name = f"{r['channels']} channels, {r['side']} px, batch {r['batch']}"
        cell = f"{r['ms']['torch']:.1f} / {r['ms']['ours']:.1f} = {r['faster']:.2f}"
        layers.setdefault(name, []).append(cell)
    columns = ["layer", "forward", "gradient of images", "of weights"]
    return markdown(columns, [[name, *cells] for name, cells in layers.items()])


def pretraining() -> str:
    """The runs of docs/studies."""
    rows = []
    for r in sorted(read("study"), key=lambda r: r.get("eps") or 0):
        if r["what"] != "pretraining":
            continue
        shares = ("clean_acc", "pgd_acc", "attacked_clean_acc", "autoattack_acc")
        percents = ["" if r[k] is None else f"{100 * r[k]:.1f}" for k in shares]
        sha256 = f"`{r['sha256'][:16]}`"
        rows.append([f"`{r['run']}`", f"{r['eps']:g}", *percents, sha256])
    columns = [
        "run",
        "eps",
        "clean, all",
        "PGD-10 at its eps",
        "clean",
        "AutoAttack, eps 1",
    ]
    return markdown([*columns, "weights, SHA-256"], rows)


def study() -> str:
    """Means and standard deviations over the seeds of the transfer study.

    Raises:
        ValueError: two experiments would stand at one place of the table.
    """
    cells = [r for r in read("study") if r["what"] == "transfer"]
    # The study's own first, by radius.
    order = {
        (not r["source"].startswith("tiny"), r["source_eps"] or 0, source_title(r))
        for r in cells
    }
    sources = [source for *_, source in sorted(order)]
    settings: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for r in sorted(
        cells, key=lambda r: (r["target"], r["mode"], r["k_blocks"], r["num_pool"])
    ):
        images = "all" if r["complete"] else str(r["num_pool"])
        place = (r["target"], r["trains"], images)
        other = settings.setdefault(place, {}).setdefault(source_title(r), r)
        if other is not r:
            differ = {k: (other[k], r[k]) for k in r if other[k] != r[k]}
            raise ValueError(
                f"two experiments with {r['source']} on {', '.join(place)} images share "
                f"a place of the table; they differ in {differ}. Add what tells them "
                "apart to the table, or leave one out of the study"
            )
    rows = [
        [*place, *(mean_std(found.get(source)) for source in sources)]
        for place, found in settings.items()
    ]
    return markdown(["target", "what trains", "images", *sources], rows)


def source_title(row: dict[str, Any]) -> str:
    """A source of the study, with the side of its images."""
    return f"{row['source']}, {row['resolution']} px"


def mean_std(row: dict[str, Any] | None) -> str:
    """Mean and standard deviation; empty for no experiment."""
    if row is None:
        return ""
    return f"{row['mean']:.1f}" + (
        "" if row["std"] is None else f" +- {row['std']:.1f}"
    )


def summary() -> str:
    """The README's table: what is measured and the command that measures it."""
    cells = [r for r in read("pgd_step") if r["job"] == "step" and r["norm"] == "l2"]
    peers = {(r["arch"], r["what"]): r for r in read("attack")}
    trained = {(r["arch"], r["what"]): r for r in read("training_steps")}
    large = [r["faster_than_eager"] for r in cells if r["batch"] == 64]
    compiled = [r["faster_than_compile"] for r in cells]
    share = [r["share_of_triad"] for r in cells if "share_of_triad" in r]
    step = "`python bench/bench_pgd_step.py`"
    attack = "`python bench/bench_attack.py`"
    rows = [
        [
            "fused L2 step, batch 64, against eager PyTorch",
            f"{min(large):.1f} to {max(large):.1f} x",
            step,
        ],
        [
            "the same, batch 8, 16 and 64, against torch.compile",
            f"{min(compiled):.1f} to {max(compiled):.1f} x",
            step,
        ],
        [
            "its speed against a tuned triad of the same bytes",
            f"{100 * min(share):.0f} to {100 * max(share):.0f} %",
            step,
        ],
    ]
    for arch in ("resnet18", "resnet50"):
        for peer in ("torchattacks", "robustness", "foolbox", "art"):
            rows.append(
                [
                    f"PGD-3 on {arch}, 224 px, batch 16, against {peer}",
                    f"{spread(peers[arch, peer], 'times_ours')} x",
                    attack,
                ]
            )
        rows.append(
            [
                f"PGD-3 training step of {arch} in PyTorch's clean ones",
                f"{spread(trained[arch, 'train, PGD-3'], 'times_ours')}",
                f"{attack[:-1]} --peers --name training_steps`",
            ]
        )
    return markdown(["what", "result", "command"], rows)


def statistics_designs() -> str:
    """Every design of simulate_tests."""
    rows = [
        [
            str(r["seeds"]),
            str(r["runs"]),
            *(
                f"{100 * r[f'coverage{kind}']:.1f} %"
                for kind in ("", "_images", "_no_effects", "_lowest", "_highest")
            ),
            f"{r['detectable']:.2f}",
            f"{100 * r['power']:.1f} %",
            f"{100 * r['power_both']:.1f} % ({100 * r['forecast_both']:.1f} %)",
            f"{100 * r['power_of_half']:.1f} % ({100 * r['forecast_of_half']:.1f} %)",
            f"{100 * r['family_error']:.1f} %",
            f"{100 * r['family_error_uncorrected']:.1f} %",
        ]
        for r in read("statistics")
        if "seeds" in r
    ]
    columns = [
        "seeds",
        "source runs",
        "95 % intervals cover",
        "with test images",
        "no effects",
        "lowest",
        "highest",
        "lead",
        "found (forecast 80 %)",
        "found, with interaction (forecast)",
        "half of it, found (forecast)",
        "families with a wrong finding",
        "choice not counted",
    ]
    return markdown(columns, rows)


def strengths() -> str:
    """Mean accuracy by C of heads of few images, and the largest loss against the best C."""
    found = read("strengths")
    values = sorted({r["c"] for r in found if 1e-4 <= r["c"] <= 100})
    cells: dict[tuple[int | None, float], list[tuple[float, float]]] = {}
    for r in found:
        alike = ("network", "target", "per_class")
        peers = [p["mean"] for p in found if all(p[key] == r[key] for key in alike)]
        of_cell = cells.setdefault((r["per_class"], r["c"]), [])
        of_cell.append((r["mean"], max(peers) - r["mean"]))

    def cell(of_cell: list[tuple[float, float]]) -> str:
        means, losses = zip(*of_cell, strict=True)
        return f"{sum(means) / len(means):.1f} ({max(losses):.1f})"

    rows = [
        [str(n or "all"), *(cell(cells[n, c]) for c in values)]
        for n in dict.fromkeys(r["per_class"] for r in found)
    ]
    return markdown(["images per class", *(f"C = {c:g}" for c in values)], rows)


def statistics_sets() -> str:
    """The tests across data sets of simulate_tests."""
    rows = [
        [
            str(r["sets"]),
            f"{r['lead']:.0f}",
            *(f"{100 * r[key]:.1f} %" for key in ("coverage", "sign_test", "wilcoxon")),
        ]
        for r in read("statistics")
        if "sets" in r
    ]
    columns = ["data sets", "mean lead", "95 % intervals cover"]
    return markdown([*columns, "sign test finds a lead", "Wilcoxon finds one"], rows)


def small_run(row: dict[str, Any]) -> str:
    """The command of bench/recipes.py for one recipe, and what came of it, as comments."""
    on = row["ran_on"]
    threads = "one thread" if on["threads"] == 1 else f"{on['threads']} threads"
    text = (
        f"{row['command']} took {row['cpu_minutes']:.1f} CPU minutes ({on['cpu']}, "
        f"{threads}): "
        f"{100 * row['clean_acc']:.1f} % clean ({row['images']:,} test images)"
    )
    if row["robust_acc"] is not None:
        text += (
            f", {100 * row['robust_acc']:.1f} % under PGD of ten steps within eps "
            f"({row['robust_images']:,} of them)"
        )
    text += ". Made by bench/recipes.py."
    return textwrap.fill(
        text,
        width=92,
        initial_indent="# Small:    ",
        subsequent_indent="#           ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def recipes() -> None:
    """Write them all."""
    for row in read("recipes"):
        path = ROOT / "recipes" / f"{row['recipe']}.yaml"
        lines = path.read_text().splitlines()
        about = [line for line in lines if line.startswith("#")]
        old = [i for i, line in enumerate(about) if line.startswith("# Small:")]
        header = [*about[: old[0] if old else None], small_run(row)]
        path.write_text("\n".join([*header, *lines[len(about) :]]) + "\n")


def main() -> None:
    makers = {
        "steps": steps,
        "attacks": attacks,
        "autoattack": autoattack,
        "loaders": loaders,
        "training": training,
        "transfer": transfer,
        "summary": summary,
        "training_steps": training_steps,
        "convs": convs,
        "pretraining": pretraining,
        "study": study,
        "statistics": statistics_designs,
        "statistics_sets": statistics_sets,
        "strengths": strengths,
    }
    for page in PAGES:
        text = page.read_text()
        made = _SLOT.sub(lambda m: m[1] + makers[m[2]]() + m[3], text)
        page.write_text(made)
    recipes()


if __name__ == "__main__":
    main()
