"""Attacks: their contract, the objectives they maximise, and how they maximise them."""

from fastadv.attacks.apgd import APGD
from fastadv.attacks.autoattack import Cascade, make_attack
from fastadv.attacks.contract import Attack, AttackResult
from fastadv.attacks.objectives import OBJECTIVES, Context, Objective
from fastadv.attacks.package import Budget, PackageAttack
from fastadv.attacks.pgd import PGD
from fastadv.threat import ThreatModel

__all__ = [
    "APGD",
    "OBJECTIVES",
    "PGD",
    "Attack",
    "AttackResult",
    "Budget",
    "Cascade",
    "Context",
    "Objective",
    "PackageAttack",
    "ThreatModel",
    "make_attack",
]
