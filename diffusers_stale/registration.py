"""Makes diffusers load our classes by name, from folders and from the Hub, without `trust_remote_code`.

diffusers records a component's library and class in `model_index.json`. For a library that it does not know it records
the full module path instead, and refuses to import it when loading. So, after `register`:

1. The library `diffusers_stale` is among those that diffusers loads from. It tells what kind of thing a component is
   by looking for these base classes *in our package*: that is why `diffusers_stale/__init__.py` has them as names.
2. The pipeline classes are attributes of `diffusers`, where `DiffusionPipeline.from_pretrained` looks them up; so is
   the UNet, which `AutoModel` looks up there if its folder stands alone.

Models and schedulers are then looked up as attributes of `diffusers_stale`. Tried with diffusers 0.42.1;
`tests/test_registration.py` holds every way of loading.
"""

import diffusers
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.pipeline_stale_xl import StaleDiffusionXLPipeline
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


LIBRARY = "diffusers_stale"
BASE_CLASSES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


def register() -> None:
    """Tells diffusers of our library and pipeline; again and again is as good as once."""
    LOADABLE_CLASSES[LIBRARY] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_CLASSES}
    diffusers.StaleDiffusionPipeline = StaleDiffusionPipeline
    diffusers.StaleDiffusionXLPipeline = StaleDiffusionXLPipeline
    diffusers.StaleUNet5DConditionModel = StaleUNet5DConditionModel
