from fastadv.attacks.pgd import PGD as PGD
from fastadv.data.loading.make_loader import make_loader as make_loader
from fastadv.data.opening.by_name import open_dataset as open_dataset
from fastadv.models.checkpoint import load_model as load_model
from fastadv.models.create import create_model as create_model
from fastadv.models.live_view import LiveView as LiveView
from fastadv.models.normalized import NormalizedModel as NormalizedModel
from fastadv.models.own_networks import register_arch as register_arch
from fastadv.models.view import AttackView as AttackView
from fastadv.threat import ThreatModel as ThreatModel

__version__: str
