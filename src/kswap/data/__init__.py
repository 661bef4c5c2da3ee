"""Pictures in: sources, class names, splits and decoded images of the three roles.

`build_data` is the one entry: it opens the sources of a config (`sources.py`, `folders.py`,
`hf_tables.py`), gives every class a role and a row of the extended head (`roles.py`, `labels.py`),
decodes each image once (`images.py`, `decode.py`, `pixels.py`, `store.py`) and cuts the splits
(`splits.py`). Of a source that streams (`shards.py`, `tar_shards.py`, `stream_sample.py`) a sample
is read so; its training images are read as they are needed (`streaming.py`). torch and datasets are
imported only when they are used.
"""

from kswap.data.build import build_data
from kswap.data.images import BadImageError, read_image
from kswap.data.labels import match_class
from kswap.data.pixels import Fitter, Pixels
from kswap.data.sets import ImageSet, SwapData

__all__ = [
    "BadImageError",
    "Fitter",
    "ImageSet",
    "Pixels",
    "SwapData",
    "build_data",
    "match_class",
    "read_image",
]
