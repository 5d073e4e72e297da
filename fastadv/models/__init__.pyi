from fastadv.models.activations import Stage as Stage
from fastadv.models.architecture_names import (
    ARCHITECTURES as ARCHITECTURES,
)
from fastadv.models.architecture_names import (
    IMAGENET_MEAN as IMAGENET_MEAN,
)
from fastadv.models.architecture_names import (
    IMAGENET_STD as IMAGENET_STD,
)
from fastadv.models.architecture_names import (
    list_models as list_models,
)
from fastadv.models.checkpoint import (
    load_model as load_model,
)
from fastadv.models.checkpoint import (
    read_metadata as read_metadata,
)
from fastadv.models.checkpoint import (
    save_model as save_model,
)
from fastadv.models.checkpoint import (
    state_hash as state_hash,
)
from fastadv.models.create import create_model as create_model
from fastadv.models.export import (
    export_model as export_model,
)
from fastadv.models.export import (
    plain_module as plain_module,
)
from fastadv.models.normalized import NormalizedModel as NormalizedModel
from fastadv.models.registry import ArchSpec as ArchSpec
from fastadv.models.registry import get_spec as get_spec
from fastadv.models.source import Source as Source
from fastadv.models.source import open_source as open_source
from fastadv.models.view import AttackView as AttackView
from fastadv.models.weights import (
    Weights as Weights,
)
from fastadv.models.weights import (
    find_weights as find_weights,
)
from fastadv.models.weights import (
    resolve_checkpoint as resolve_checkpoint,
)
