"""What TensorFlow's registry of kernels says of a function on a GPU, read on any machine.

The wheel for Linux holds the GPU's kernels and their registrations on a machine without a GPU, too.
"""

import functools

import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2
from tensorflow.python.framework import function_def_to_graph, kernels

# These have no kernel of their own, or stand for something that is looked at by itself: the body of a loop, a variable.
PASSED = {
    *("Const", "Identity", "NoOp", "Placeholder", "Shape", "_Arg", "_Retval"),
    *("If", "PartitionedCall", "StatefulPartitionedCall", "StatelessIf", "StatelessWhile", "While"),
}
ON_THE_HOST = (tf.string, tf.variant)  # by nature: what takes or gives these has no business on a GPU


def misplaced(function: tf.types.experimental.ConcreteFunction, *, large: int, xla: bool = False) -> list[str]:
    """Operations that a GPU has no kernel for, or that keep large tensors in host memory; and variables of int32.

    Args:
        function: a traced one; the functions that it calls, such as bodies of loops, are looked at, too.
        large: tensors of more numbers count as large. One of unknown size does not.
        xla: whether XLA compiles it: then there is no host memory, but not all operations are known.

    Returns:
        A line for each, sorted.
    """
    found = set()
    for graph in _graphs(function):
        for op in graph.get_operations():
            tensors = [*op.inputs, *op.outputs]
            if op.type in PASSED or any(tensor.dtype in ON_THE_HOST for tensor in tensors):
                continue
            kernel = _kernel_of(op, "XLA_GPU_JIT" if xla else "GPU")
            if kernel is None:
                found.add(f"no kernel: {op.type} of {', '.join(tensor.dtype.name for tensor in op.inputs)}")
            elif not xla:
                found |= {f"on the host: {op.type} of {each}" for each in _large_on_host(op, kernel, large)}
    found |= {f"int32 variable: {v.name}" for v in function.graph.variables if v.dtype == tf.int32}
    return sorted(found)


def _graphs(function):
    yield function.graph
    with function.graph.as_default():
        for definition in function.graph.as_graph_def().library.function:
            if "_gradient_" not in definition.signature.name:
                yield function_def_to_graph.function_def_to_graph(definition)


@functools.cache
def _registered(op_type: str) -> list[kernel_def_pb2.KernelDef]:
    tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0))  # the first one registers XLA's kernels
    return list(kernels.get_registered_kernels_for_op(op_type).kernel)


def _kernel_of(op, device):
    """The kernel on this device for these types; on "GPU" else the one of any device, which lives on the host."""
    of_any = None
    for kernel in _registered(op.type):
        if all(_types(op, each.name) <= set(each.allowed_values.list.type) for each in kernel.constraint):
            if kernel.device_type == device:
                return kernel
            if kernel.device_type == "DEFAULT" and device == "GPU":
                of_any = kernel
    return of_any


def _types(op, name):
    attribute = op.node_def.attr[name]
    return {attribute.type} if attribute.WhichOneof("value") == "type" else set(attribute.list.type)


def _large_on_host(op, kernel, large):
    """Dtype and shape of the large tensors among the arguments that this kernel keeps in host memory."""
    for arguments, tensors in ((op.op_def.input_arg, op.inputs), (op.op_def.output_arg, op.outputs)):
        tensors = iter(tensors)
        for argument in arguments:
            count = 1
            if argument.number_attr:
                count = op.node_def.attr[argument.number_attr].i
            elif argument.type_list_attr:
                count = len(op.node_def.attr[argument.type_list_attr].list.type)
            for tensor in [next(tensors) for _ in range(count)]:
                size = tensor.shape.num_elements() or 0
                if argument.name in kernel.host_memory_arg and tensor.dtype != tf.resource and size > large:
                    yield f"{tensor.dtype.name}{tensor.shape}"
