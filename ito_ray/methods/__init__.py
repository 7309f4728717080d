"""One file a method: towers → Features, losses → StepResult. `build_method` picks one by the configuration."""

from ito_ray.config.schema import Config
from ito_ray.methods.base import Batch, Features, Method, StepResult
from ito_ray.methods.clip import Clip
from ito_ray.methods.ito import Ito
from ito_ray.methods.siglip import SigLip
from ito_ray.models.dual_encoder import DualEncoder

__all__ = ["Batch", "Features", "Method", "StepResult", "build_method"]

METHODS: dict[str, type[Method]] = {"clip": Clip, "siglip": SigLip, "ito": Ito}


def build_method(cfg: Config, encoder: DualEncoder) -> Method:
    """The method that `cfg.method.name` names, around `encoder`."""
    return METHODS[cfg.method.name](encoder, cfg)
