"""Where a command's --model is: a folder, or an address in the model registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ito_ray.config.schema import Config
from ito_ray.data.walk import is_folder

if TYPE_CHECKING:
    from ito_ray.embeddings.model import Model


def find_model(address: str, tracking_uri: str) -> Model:
    """The encoder, fetched from the registry when it is there.

    Raises:
        ConfigError: no SentenceTransformer folder.
        TrackingError: no such model, version, alias or store.
    """
    from ito_ray.embeddings.model import identify

    if is_folder(address) or ("://" not in address and not address.startswith(("models:", "runs:"))):
        return identify(Path(address), address=address)
    from ito_ray.tracking.address import fetch, find_store  # mlflow takes seconds to import, a folder needs none of it

    folder, version = fetch(address, find_store(tracking_uri, Config().output))
    return identify(folder, address=address, version=version)
