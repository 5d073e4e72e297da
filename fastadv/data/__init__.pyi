from fastadv.data.decoding import BadImage as BadImage, decode_rgb as decode_rgb
from fastadv.data.loading.loader import (
    Batch as Batch,
    Loader as Loader,
    LoaderOptions as LoaderOptions,
)
from fastadv.data.loading.make_loader import make_loader as make_loader
from fastadv.data.opening.by_name import (
    dataset_names as dataset_names,
    native_resolution as native_resolution,
    open_dataset as open_dataset,
    open_judged_splits as open_judged_splits,
)
from fastadv.data.sets.image_set import (
    ArraySet as ArraySet,
    DatasetSplits as DatasetSplits,
    ImageSet as ImageSet,
)
from fastadv.data.sets.shapetex import ShapeTex as ShapeTex
from fastadv.data.sets.subsets import (
    Subset as Subset,
    subset as subset,
    train_val_split as train_val_split,
)
