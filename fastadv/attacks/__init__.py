"""Attacks: what is maximised (`objectives`) and how (`pgd`)."""

from fastadv.attacks.objectives import OBJECTIVES, Context, Objective
from fastadv.attacks.pgd import PGD, AttackResult
from fastadv.threat import ThreatModel

__all__ = ["OBJECTIVES", "PGD", "AttackResult", "Context", "Objective", "ThreatModel"]
