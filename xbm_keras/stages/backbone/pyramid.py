"""Maps of a convolutional network from before its last ones, for features that keep what the last ones forget."""

import difflib
from collections.abc import Sequence
from typing import Literal

import keras

LEVELS = 3
LEVEL_NAMES = tuple(f"pyramid.{i + 1}" for i in range(LEVELS))
CELLS = 2  # of a side
IN_CELLS = f"/{CELLS}x{CELLS}"  # ends a name
MOST_IN_CELLS = 4096  # numbers of what is chosen among: a closed form takes the third power of them


def with_outputs(
    network: keras.Model, layers: str | Sequence[str], pooling: Literal["avg", "max", "first"] = "avg"
) -> keras.Model:
    """The same network, which gives the outputs of several of its layers.

    Args:
        network: a functional or sequential model.
        layers: names; "last": the network as it is; or "pyramid": of each of the three lowest resolutions, such as
            28 x 28, 14 x 14 and 7 x 7, the last layer through which all must pass, as detectors take them from a
            classifier. Among names "pyramid.1" is the finest of these maps, "pyramid.2" the next one. A name that ends
            in "/2x2" is its map pooled in four cells, one after another, [B, 4 D]: what is where.
        pooling: "avg" or "max", of cells.

    Raises:
        ValueError: for a layer that the network lacks, for cells of what is no map of two by two or more, and for
            "pyramid" of a network whose output is no map or which calls a layer more than once.

    Example:
        >>> conv = lambda i: keras.layers.Conv2D(4 + i, 3, strides=2, padding="same")
        >>> network = keras.Sequential([keras.Input((32, 32, 3)), *map(conv, range(4))])
        >>> [each.shape for each in with_outputs(network, "pyramid").outputs]
        [(None, 8, 8, 5), (None, 4, 4, 6), (None, 2, 2, 7)]

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, whose C3, C4 and C5 these are; side by
        side for other tasks: Evci et al., "Head2Toe", ICML 2022. Cells: Lazebnik et al., "Beyond Bags of Features:
        Spatial Pyramid Matching", CVPR 2006.
    """
    if layers == "last":
        return network
    inputs = network.inputs[0] if len(network.inputs) == 1 else network.input
    if layers == "pyramid":
        return keras.Model(inputs, _pyramid(network), name=network.name)
    known = {layer.name: layer.output for layer in network.layers}
    if any(name.startswith("pyramid.") for name in layers):
        known |= dict(zip(LEVEL_NAMES, _pyramid(network), strict=False))
    for name in layers:
        whole = name.removesuffix(IN_CELLS)
        if name not in known and whole in known:
            known[name] = _in_cells(known[whole], name, pooling)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"Received the layer {name!r}, which {network.name} lacks. {hint}Expected names of its layers, such as "
                f"{', '.join(list(known)[-3:])}; or 'pyramid' or 'last'."
            )
    return keras.Model(inputs, [known[name] for name in layers], name=network.name)


def parts_to_choose(network: keras.Model) -> tuple[list[str], list[tuple[str, ...]]]:
    """Of a pyramid the names of all maps, as they are and in cells, and those together among which a run chooses.

    These are all neighbouring maps, and where there are maps of four by four or more, whose cells are not too many
    numbers, these in cells.

    Args:
        network: that gives the maps of a pyramid.
    """
    maps = network.outputs
    runs = runs_of_levels(len(maps))
    cells = {
        name: CELLS**2 * map.shape[-1]
        for name, map in zip(LEVEL_NAMES, maps, strict=False)
        if None not in map.shape[1:3] and min(map.shape[1:3]) >= 2 * CELLS and CELLS**2 * map.shape[-1] <= MOST_IN_CELLS
    }
    in_cells = [
        tuple(name + IN_CELLS for name in run)
        for run in runs
        if cells.keys() >= set(run) and sum(cells[name] for name in run) <= MOST_IN_CELLS
    ]
    return [*LEVEL_NAMES[: len(maps)], *(name + IN_CELLS for name in cells)], runs + in_cells


def runs_of_levels(count: int) -> list[tuple[str, ...]]:
    """Names of neighbouring maps of a pyramid of so many, all runs of them.

    Example:
        >>> runs_of_levels(2)
        [('pyramid.1',), ('pyramid.2',), ('pyramid.1', 'pyramid.2')]
    """
    return [LEVEL_NAMES[start : start + n] for n in range(1, count + 1) for start in range(count - n + 1)]


def output_positions(network: keras.Layer) -> list[int]:
    """Which operations of a network give its outputs, where there are several; names may differ between two builds."""
    outputs = [id(each) for each in getattr(network, "outputs", None) or []]
    if len(outputs) < 2:
        return []
    place = {id(tensor): i for i, each in enumerate(_operations(network)) for tensor in _tensors(each.output)}
    return [place.get(each, -1) for each in outputs]  # -1: of a later call of a layer


def _pyramid(network: keras.Model) -> list:
    """Outputs of the last layers of each resolution, the finest first."""
    output = network.outputs[0]
    if len(output.shape) != 4 or output.shape[1] is None:
        raise ValueError(
            f"Received a network whose output is {tuple(output.shape)} with layers='pyramid'; expected maps "
            "[B, H, W, D] of a fixed size. Take a network without its classifier and pooling, name the layers, or use "
            "layers: last."
        )
    found = [output]
    for tensor in reversed(_trunk(network)):
        # A step of the network halves the size, about: padding may change it a little.
        if len(found) < LEVELS and 1.5 <= tensor.shape[1] / found[-1].shape[1] < 3:
            found.append(tensor)
    return found[::-1]


def _in_cells(map, name: str, pooling: str):
    """[B, 4 D] of a map [B, H, W, D]: sides that are odd share their middle."""
    if len(map.shape) != 4 or None in map.shape[1:3] or min(map.shape[1:3]) < CELLS or pooling == "first":
        raise ValueError(
            f"Received {name!r} of an output of shape {tuple(map.shape)} with pooling={pooling!r}; expected a map "
            f"[B, H, W, D] of a fixed size, {CELLS} by {CELLS} or more, and 'avg' or 'max'."
        )
    layer = keras.layers.AveragePooling2D if pooling == "avg" else keras.layers.MaxPooling2D
    sides = map.shape[1:3]
    pooled = layer([-(-side // CELLS) for side in sides], [side // CELLS for side in sides])(map)
    return keras.layers.Reshape((CELLS**2 * map.shape[-1],))(pooled)


def _trunk(network: keras.Model) -> list:
    """Maps that all later ones come from, in order: no connection goes past them."""
    operations = [each for each in _operations(network) if not isinstance(each, keras.layers.InputLayer)]
    outputs, inputs = [_tensors(each.output) for each in operations], [_tensors(each.input) for each in operations]
    made_by = {id(tensor): i for i, tensors in enumerate(outputs) for tensor in tensors}
    used = {id(tensor) for tensors in [*inputs, network.outputs] for tensor in tensors}
    if not used <= made_by.keys() | {id(each) for each in network.inputs}:  # a layer tells of its first call alone
        raise ValueError(
            f"Received {network.name} with layers='pyramid', which calls a layer more than once, so that its layers "
            "cannot be followed. Name the layers, or use layers: last."
        )
    reach = [0] * len(operations)  # the last operation that uses what operation i made
    for i, tensors in enumerate(inputs):
        for tensor in tensors:
            if id(tensor) in made_by:
                reach[made_by[id(tensor)]] = i
    result, furthest = [], 0
    for i, (operation, tensors) in enumerate(zip(operations, outputs, strict=True)):
        is_map = len(tensors) == 1 and len(tensors[0].shape) == 4
        if furthest <= i and is_map and not isinstance(operation, keras.layers.ZeroPadding2D):
            result.append(tensors[0])
        furthest = max(furthest, reach[i])
    return result


def _tensors(structure) -> list:
    return keras.tree.flatten(structure)


def _operations(network: keras.Model) -> list:
    """In order; functional networks may have some that are no layers."""
    return getattr(network, "operations", network.layers)
