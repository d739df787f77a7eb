"""A head as modules of sentence-transformers, which go behind any of its encoders."""

import importlib
import json
import pathlib

from xbm_keras.atomic_files import write_whole
from xbm_keras.stages.head.fc_layer import Head

NORMALIZE, DENSE = "sentence_transformers.models.Normalize", "sentence_transformers.models.Dense"
IDENTITY = "torch.nn.modules.linear.Identity"


def export_modules(head: Head, folder: pathlib.Path) -> pathlib.Path:
    """Write `0_Normalize`, `1_Dense` and `2_Normalize`: features to unit length, the FC layer, to unit length again.

    Needs the package safetensors, of the extra [hub], and neither PyTorch nor sentence-transformers.

    Args:
        head: of one FC layer, for items or for queries.
        folder: made where it is not there.

    Raises:
        ValueError: for a head that is more than an FC layer, or has one for each side; without safetensors.

    Example:
        >>> import tempfile
        >>> head = Head(2)
        >>> head.build((None, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in sorted(export_modules(head, pathlib.Path(folder) / "head").iterdir())]
        ['0_Normalize', '1_Dense', '2_Normalize', 'modules.json']
    """
    if head.kind == "mlp" or head.power != 1 or head.sides == "two":
        raise ValueError(
            f"Received a head with kind={head.kind!r}, power={head.power} and sides={head.sides!r}; expected one FC "
            "layer on the features as they are, which is what a Dense module computes. Train with head.kind=linear, or "
            "export a SavedModel."
        )
    try:
        to_bytes = importlib.import_module("safetensors.numpy").save
    except ImportError as error:
        raise ValueError(
            f"Received {folder}, and safetensors cannot be imported ({error}); expected the extra [hub]. Install it "
            'with: pip install ".[hub]"'
        ) from error
    kernel = head.kernel.numpy() + (head.delta.numpy() if head.kind == "residual" else 0.0)
    width, dims = kernel.shape
    types = {"0_Normalize": NORMALIZE, "1_Dense": DENSE, "2_Normalize": NORMALIZE}
    for name in types:
        (folder / name).mkdir(parents=True, exist_ok=True)
    about = {"in_features": width, "out_features": dims, "bias": True, "activation_function": IDENTITY}
    write_whole(folder / "1_Dense/config.json", json.dumps(about, indent=1))
    weights = {"linear.weight": kernel.T.copy(), "linear.bias": head.bias.numpy()}
    write_whole(folder / "1_Dense/model.safetensors", to_bytes(weights))
    modules = [{"idx": i, "name": str(i), "path": name, "type": kind} for i, (name, kind) in enumerate(types.items())]
    write_whole(folder / "modules.json", json.dumps(modules, indent=1))
    return folder
