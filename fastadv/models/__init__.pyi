from fastadv.models.architecture_names import (
    ARCHITECTURES as ARCHITECTURES,
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    list_models as list_models,
)
from fastadv.models.checkpoint import (
    load_model as load_model,
    read_metadata as read_metadata,
    save_model as save_model,
    state_hash as state_hash,
)
from fastadv.models.checkpoint_files import resolve_checkpoint as resolve_checkpoint
from fastadv.models.create import create_model as create_model
from fastadv.models.export import (
    export_model as export_model,
    plain_module as plain_module,
)
from fastadv.models.intermediate import Stage as Stage, activations as activations
from fastadv.models.live_view import LiveView as LiveView
from fastadv.models.normalized import (
    NormalizedModel as NormalizedModel,
    as_model as as_model,
)
from fastadv.models.own_networks import register_arch as register_arch
from fastadv.models.registry import ArchSpec as ArchSpec, get_spec as get_spec
from fastadv.models.source import Source as Source, open_source as open_source
from fastadv.models.view import AttackView as AttackView
from fastadv.models.weights import Weights as Weights, find_weights as find_weights
