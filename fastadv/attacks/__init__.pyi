from fastadv.attacks.apgd import APGD as APGD
from fastadv.attacks.autoattack import Cascade as Cascade, make_attack as make_attack
from fastadv.attacks.bpda import BPDA as BPDA, Transfer as Transfer
from fastadv.attacks.contract import (
    Attack as Attack,
    AttackResult as AttackResult,
    SingleAttack as SingleAttack,
)
from fastadv.attacks.deepfool import DeepFool as DeepFool
from fastadv.attacks.fmn import DDN as DDN, FMN as FMN
from fastadv.attacks.minimal import MinimalResult as MinimalResult
from fastadv.attacks.objectives import (
    OBJECTIVES as OBJECTIVES,
    Context as Context,
    Objective as Objective,
)
from fastadv.attacks.package import Budget as Budget, PackageAttack as PackageAttack
from fastadv.attacks.pgd import PGD as PGD
from fastadv.attacks.universal import UniversalAttack as UniversalAttack
from fastadv.threat import ThreatModel as ThreatModel
