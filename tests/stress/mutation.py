"""Plant one bug after another in a copy of the package, and run the test that sees it.

    python tests/stress/mutation.py             # all
    python tests/stress/mutation.py clamp ema   # those whose name holds one of these
    python tests/stress/mutation.py --check     # only that every bug can be planted

A bug survives when its named test passes. The exit status is 0 when none survives.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Bug(NamedTuple):
    """A mistake: in a file, `old` is replaced by `new` where it is found first."""

    name: str
    file: str
    old: str
    new: str
    test: str


BUGS = [
    Bug(*each)
    for each in [
        (
            "pgd step descends",
            "kernels/reference.py",
            "_project(d + _ascent(gx",
            "_project(d - _ascent(gx",
            'tests/attacks/test_pgd.py::test_more_steps_reach_a_higher_loss tests/kernels/test_kernel_values.py -k "reference or cpp or higher"',
        ),
        (
            "no clamp to [0, 1] after a step",
            "kernels/reference.py",
            "image = s.x.copy_((clean + moved).clamp_(0, 1))",
            "image = s.x.copy_(clean + moved)",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "no clamp of the random start",
            "kernels/reference.py",
            "+ delta).clamp_(0, 1)\n    return image",
            "+ delta)\n    return image",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "random start on the surface of the ball",
            "kernels/reference.py",
            " ** (1 / (c * h * w))",
            " ** 0",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "random start in half of the ball",
            "kernels/reference.py",
            "(2 * philox.to_uniform(words, c) - 1) * radius",
            "philox.to_uniform(words, c) * radius",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "momentum the wrong way round",
            "kernels/reference.py",
            "s.momentum * (ahead - d) + (1 - s.momentum)",
            "(1 - s.momentum) * (ahead - d) + s.momentum",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "next input in pixel units",
            "kernels/reference.py",
            "s.z.copy_((image - _per_channel(s.mean, dtype)) / _per_channel(s.std, dtype))",
            "s.z.copy_(image)",
            "tests/kernels/test_kernel_values.py",
        ),
        (
            "eps in normalised space",
            "fastadv/attacks/pgd.py",
            '("eps", self.threat.eps),',
            '("eps", self.threat.eps * float(std.mean())),',
            "tests/attacks/test_pgd.py::test_full_steps_end_on_the_sphere_or_the_box",
        ),
        (
            "last restart is kept",
            "fastadv/attacks/engine.py",
            "take = (b.success & ~a.success) | (",
            "take = (b.success | True) | (",
            "tests/attacks/test_pgd.py::test_restarts_keep_the_worst_per_sample",
        ),
        (
            "last iterate is kept",
            "fastadv/attacks/pgd.py",
            'if nonfinite is not None and self.keep == "best":',
            'if nonfinite is not None and self.keep == "worst":',
            "tests/attacks/test_pgd.py::test_best_is_the_worst_iterate",
        ),
        (
            "restarts draw the same start",
            "fastadv/attacks/engine.py",
            "(seed + restart * 0x9E3779B97F4A7C15)",
            "(seed + 0 * 0x9E3779B97F4A7C15)",
            "tests/attacks/test_pgd.py::test_restarts_keep_the_worst_per_sample tests/attacks/test_pgd.py::test_training_takes_the_worst_of_several_starts",
        ),
        (
            "batches draw the same start",
            "fastadv/attacks/engine.py",
            "seed=key, offset=offset\n",
            "seed=key, offset=0\n",
            "tests/attacks/test_pgd.py::test_offset_splits_a_batch",
        ),
        (
            "default step too short",
            "fastadv/attacks/pgd.py",
            "(2 if num_steps <= 3 else 2.5)",
            "(1 if num_steps <= 3 else 2.5)",
            "tests/attacks/test_pgd.py::test_the_default_step_is_that_of_the_papers_and_crosses_the_ball",
        ),
        (
            "pixels are not checked",
            "fastadv/attacks/engine.py",
            "if not (low >= 0 and high <= 1):",
            "if False:",
            "tests/attacks/test_pgd.py::test_images_outside_the_box_are_refused_with_the_remedy",
        ),
        (
            "labels are not checked",
            "fastadv/attacks/engine.py",
            "if low < 0 or (num_classes",
            "if False and (num_classes",
            "tests/attacks/test_pgd.py::test_refusals_name_the_value_and_the_way_out tests/evaluation/test_evaluate.py::test_bad_images_labels_and_outputs",
        ),
        (
            "margin with the wrong sign",
            "fastadv/attacks/objectives.py",
            "return others.amax(1) - logits.gather(1, true).squeeze(1)",
            "return logits.gather(1, true).squeeze(1) - others.amax(1)",
            "tests/attacks/test_objectives.py",
        ),
        (
            "mean for sum",
            "fastadv/attacks/objectives.py",
            "return per_class.sum(1)",
            "return per_class.mean(1)",
            "tests/attacks/test_objectives.py::test_value_is_the_formula",
        ),
        (
            "dlr over the second logit",
            "fastadv/attacks/objectives.py",
            "(top[:, 0] - top[:, 2] + 1e-12)",
            "(top[:, 0] - top[:, 1] + 1e-12)",
            "tests/attacks/test_objectives.py::test_value_is_the_formula",
        ),
        (
            "targeted attack flees its target",
            "fastadv/attacks/objectives.py",
            "return -cross_entropy(logits, context)",
            "return cross_entropy(logits, context)",
            "tests/attacks/test_objectives.py::test_value_is_the_formula tests/attacks/test_pgd.py::test_targeted_attack_reaches_its_target",
        ),
        (
            "success and failure exchanged",
            "fastadv/attacks/objectives.py",
            "return hit if objective.flips_success else ~hit",
            "return ~hit if objective.flips_success else hit",
            "tests/attacks/test_objectives.py::test_success_counts_wrong_predictions_or_hit_targets",
        ),
        (
            "NaN decides for class 0",
            "fastadv/attacks/outputs.py",
            "logits.argmax(1).where(logits.isfinite().all(1), -1)",
            "logits.argmax(1)",
            "tests/evaluation/test_not_finite.py",
        ),
        (
            "BatchNorm in train mode in the attack",
            "fastadv/models/view.py",
            "copy.deepcopy(self.live, memo).eval()",
            "copy.deepcopy(self.live, memo).train()",
            "tests/attacks/test_view_folding.py",
        ),
        (
            "folding forgets the epsilon",
            "fastadv/models/folding.py",
            "(norm.running_var + norm.eps).rsqrt()",
            "norm.running_var.rsqrt()",
            "tests/attacks/test_view_folding.py",
        ),
        (
            "folding adds the mean",
            "fastadv/models/folding.py",
            "shift = -norm.running_mean * scale",
            "shift = norm.running_mean * scale",
            "tests/attacks/test_view_folding.py",
        ),
        (
            "view does not follow the weights",
            "fastadv/models/view.py",
            "if _versions(held) != versions:",
            "if False:",
            "tests/attacks/test_attack_view.py -k follows tests/attacks/test_pgd_contract.py tests/loops/test_adversary.py",
        ),
        (
            "view is never compared",
            "fastadv/models/view.py",
            "found = self.agreement = compared(self, x)",
            "found = self.agreement = Agreement()",
            "tests/models/test_agreement.py",
        ),
        (
            "verdict from the view",
            "fastadv/attacks/outputs.py",
            "    return checked_logits(view.logits_of_model(x))",
            "    return checked_logits(view(view.normalize(x)))",
            "tests/models/test_agreement.py",
        ),
        (
            "views leave their sources",
            "fastadv/models/folding.py",
            "fx.graph_module._loader.eval_cache.pop(name, None)",
            "pass",
            "tests/models/test_agreement.py::test_views_leave_nothing_behind",
        ),
        (
            "zero gradients are not seen",
            "fastadv/attacks/checks.py",
            "zero = (grad.flatten(1) == 0).all(1)",
            "zero = (grad.flatten(1) != grad.flatten(1)).all(1)",
            "tests/attacks/test_checks.py",
        ),
        (
            "misleading gradients are not seen",
            "fastadv/attacks/checks.py",
            "rises |= margin(",
            "rises |= 1e9 > margin(",
            'tests/attacks/test_masking_panel.py -k "flipped or random"',
        ),
        (
            "BPDA does not pass rounding",
            "fastadv/attacks/bpda.py",
            "if func in _FLAT or",
            "if",
            'tests/attacks/test_masking_panel.py -k "bpda and levels"',
        ),
        (
            "custom backward passes are followed",
            "fastadv/attacks/bpda.py",
            "return cls.forward(*args) if own else",
            "return usual.__get__(None, cls)(*args) if not own else",
            'tests/attacks/test_masking_panel.py -k "bpda and untraceable"',
        ),
        (
            "robust counts what was wrong before",
            "fastadv/evaluation/judging.py",
            "torch.where(right, fell_to, -torch.ones_like(fell_to))",
            "torch.where(right | True, fell_to, -torch.ones_like(fell_to))",
            "tests/evaluation/test_evaluate.py::test_only_what_was_right_can_be_robust",
        ),
        (
            "off by one attack",
            "fastadv/evaluation/accuracy.py",
            "labels[fell > stage]",
            "labels[fell >= stage]",
            "tests/evaluation/test_evaluate.py::test_each_attack_of_a_cascade_is_reported",
        ),
        (
            "labels of the batch before",
            "fastadv/evaluation/judging.py",
            "right, lost = decided(clean) == labels,",
            "right, lost = decided(clean) == labels.roll(1),",
            "tests/evaluation/test_evaluate.py::test_evaluation_equals_a_plain_loop_and_changes_nothing",
        ),
        (
            "random starts of every batch alike",
            "fastadv/evaluation/judging.py",
            "        seen += len(labels)\n",
            "        seen += 0\n",
            "tests/evaluation/test_evaluate.py::test_a_journal_gives_back_what_was_found",
        ),
        (
            "interval of one sided level",
            "fastadv/statistics/intervals.py",
            "z = 1.959964",
            "z = 1.644854",
            "tests/evaluation/test_evaluate.py::test_wilson_interval",
        ),
        (
            "mean per class counts empty classes",
            "fastadv/evaluation/accuracy.py",
            "present = self.total > 0\n        return float((self.correct",
            "present = self.total >= 0\n        return float((self.correct",
            "tests/evaluation/test_evaluate.py::test_accuracy_in_numbers",
        ),
        (
            "normalisation by mean only",
            "fastadv/models/normalized.py",
            "return (x - mean) / std",
            "return x - mean",
            'tests/models/test_architectures.py tests/attacks/test_attack_view.py -k "resnet20_cifar"',
        ),
        (
            "average without warm-up",
            "fastadv/training/ema.py",
            "min(self.decay, (1 + self.updates) / (10 + self.updates))",
            "self.decay",
            "tests/training/test_optimizers.py::test_ema_is_the_average_of_its_equation",
        ),
        (
            "average of the other weight",
            "fastadv/training/ema.py",
            "            1 - decay,",
            "            decay,",
            "tests/training/test_optimizers.py::test_ema_is_the_average_of_its_equation",
        ),
        (
            "average is not saved",
            "fastadv/training/learner.py",
            '"ema": self.ema.state_dict() if self.ema is not None else None,',
            '"ema": self.ema.state_dict() | {"updates": 0} if self.ema is not None else None,',
            "tests/training/test_optimizers.py -k ema tests/training/test_resume_needs.py",
        ),
        (
            "order without the epoch",
            "fastadv/data/loading/order.py",
            'derive_key(o.seed, "order", self.epoch)',
            'derive_key(o.seed, "order", 0)',
            "tests/data/test_order.py tests/data/test_loaders.py::test_epochs_differ_and_repeat_under_a_seed",
        ),
        (
            "order of another seed after a resume",
            "fastadv/data/loading/order.py",
            'derive_key(o.seed, "order", self.epoch)',
            'derive_key(o.seed + self.start, "order", self.epoch)',
            "tests/data/test_order.py tests/data/test_loaders.py::test_resume_inside_an_epoch_is_bit_identical",
        ),
        (
            "head without its bias",
            "fastadv/transfer/heads.py",
            "data[:, depth] = 1\n",
            "data[:, depth] = 0\n",
            "tests/transfer/test_transfer_heads.py",
        ),
        (
            "head without weight decay",
            "fastadv/transfer/heads.py",
            "velocity.add_(weights, alpha=procedure.weight_decay)",
            "velocity.add_(weights, alpha=0.0)",
            "tests/transfer/test_transfer_heads.py",
        ),
        (
            "parts of a batch weigh the same",
            "fastadv/training/step.py",
            "part_loss * (len(part.labels) / n)",
            "part_loss / len(parts)",
            "tests/training -k accumulate",
        ),
        (
            "radius in bytes is accepted",
            "fastadv/threat.py",
            'if self.norm == "linf" and self.eps > 1:',
            'if self.norm == "linf" and self.eps > 300:',
            "tests/test_threat.py::test_linf_radius_in_bytes_is_refused_with_the_arithmetic",
        ),
        (
            "trades forgets the divergence",
            "fastadv/training/methods.py",
            'weighted = self.parameters["beta"] * divergence',
            "weighted = 0.0 * divergence",
            "tests/training/test_methods.py::test_the_loss_and_its_gradient_are_those_of_the_paper",
        ),
        (
            "mart without its weights",
            "fastadv/training/methods.py",
            "(divergence * unsure).mean()",
            "divergence.mean()",
            "tests/training/test_methods.py::test_the_loss_and_its_gradient_are_those_of_the_paper",
        ),
    ]
]


def planted(folder: Path, bug: Bug) -> None:
    """Write the bug into the copy.

    Raises:
        ValueError: The code does not hold the text that the bug replaces.
    """
    path = folder / bug.file
    text = path.read_text()
    if bug.old not in text:
        raise ValueError(f"{bug.name}: {bug.file} does not hold {bug.old!r}")
    path.write_text(text.replace(bug.old, bug.new, 1))


def copied(folder: Path) -> None:
    """Copy what the tests need."""
    for name in ("fastadv", "kernels", "tests", "examples", "recipes", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "stress")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)


def killed(folder: Path, bug: Bug) -> bool:
    """Plant a bug, run its test, and take the bug out again."""
    path = folder / bug.file
    before = path.read_text()
    planted(folder, bug)
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [*command, *shlex.split(bug.test)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        path.write_text(before)
    if done.returncode not in (0, 1):  # no test was found, or it cannot be collected
        raise RuntimeError(f"{bug.name}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return done.returncode == 1


def main(wanted: list[str]) -> int:
    """Return 0 if no bug survives."""
    check, wanted = "--check" in wanted, [name for name in wanted if name[:1] != "-"]
    bugs = [
        bug for bug in BUGS if not wanted or any(part in bug.name for part in wanted)
    ]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for bug in bugs:
            began = time.monotonic()
            if check:
                planted(Path(folder), bug)
                (Path(folder) / bug.file).write_text((ROOT / bug.file).read_text())
                continue
            dead = killed(Path(folder), bug)
            seconds = time.monotonic() - began
            print(
                f"{'killed' if dead else 'SURVIVED':8s} {bug.name} ({seconds:.0f} s)",
                flush=True,
            )
            survivors += [] if dead else [bug.name]
    print(
        f"{len(bugs) - len(survivors)} of {len(bugs)} bugs "
        + ("planted" if check else "killed")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
