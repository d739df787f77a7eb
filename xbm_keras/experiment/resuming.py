"""What a run that goes on takes from its folder, and so chooses no second time."""

import pathlib

from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import load_config
from xbm_keras.data.dataset import TriedParts
from xbm_keras.experiment.build import key_of_parts
from xbm_keras.experiment.run_folder import has_checkpoint, read_record


def begun_config(folder: pathlib.Path, config: Config) -> Config | None:
    """The config of a run that goes on; None of one that begins.

    Where the given config leaves open which parts of the network make the features, it has what the folder's
    `config.yaml` says. Where that says "auto" too, a run of a version that chose nothing was here, or a network without
    parts: "auto" is then its rule.

    Args:
        folder: of the run, claimed.
        config: as it is given now, which decides the same as the one of the folder.

    Raises:
        ConfigError: where the folder's `config.yaml` cannot be used.
    """
    if not has_checkpoint(folder) and not (folder / "metrics.json").exists():
        return None
    key = key_of_parts(config)
    if key is None:
        return config
    saved = load_config(str(folder / "config.yaml")).backbone
    taken = config.backbone.model_copy(update={key: getattr(saved, key)})
    return config.model_copy(update={"backbone": taken})


def tried_parts(folder: pathlib.Path) -> TriedParts | None:
    """What `data.json` of a run that goes on says of its choice of parts; None where none were chosen.

    Raises:
        ConfigError: where that file is damaged.
    """
    file = folder / "data.json"
    found = read_record(file).get("parts_of_network") if file.exists() else None
    return TriedParts(tuple(found["chosen"]), found["scores"]) if found else None
