"""A module of torch as an ONNX file that other programs read."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from asrtool.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# what onnxruntime 1.14 and later read, in browsers and on phones too
OPSET, IR_VERSION = 18, 8
TOLERANCE = 1e-4  # of a log-probability near 0; more by as much of its size, as rounding is


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Names of inputs and outputs, in order, with the names of their axes: None where the size is
    fixed.
    """

    inputs: Mapping[str, tuple[str | None, ...]]
    outputs: Mapping[str, tuple[str | None, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def dynamic(self) -> tuple[dict[int, object], ...] | None:
        """The free axes of the inputs, as torch wants to know them; None where none is."""
        free = torch.export.Dim.DYNAMIC
        axes = tuple(
            {axis: free for axis, name in enumerate(names) if name is not None}
            for names in self.inputs.values()
        )
        return axes if any(axes) else None


def require_packages() -> None:
    """Raise `UserError` where what writes and runs graphs is not installed."""
    missing = ", ".join(name for name in PACKAGES if not loads(name))
    if missing:
        raise UserError(f"export needs {missing}, which is not installed: pip install -e '.[onnx]'")


def loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        return False
    return True


def write(module: nn.Module, example: Sequence[Tensor], ports: Ports, file: Path) -> None:
    """Write `module` as it computes `example`. Raises `UserError` where torch cannot export it."""
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(example),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                dynamic_shapes=ports.dynamic(),
                input_names=list(ports.inputs),
                output_names=list(ports.outputs),
                verbose=False,
            )
            fold(program)
            program.save(file)
    except Exception as error:  # whatever torch's exporter stumbles over
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"torch cannot export this model ({type(module).__name__}): {reason}"
        ) from error
    tidy(file, ports)


def fold(program: torch.onnx.ONNXProgram) -> None:
    """Compute what is constant, weights that are joined or transposed too, since only a constant
    one can be quantised; and remove what nothing reads.

    The exporter's own optimiser also tries some fifty patterns on every node, a third of all its
    time; onnxruntime does that work again when it loads a graph, and runs both equally fast.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    largest = 1 << 40  # elements
    fold_constants(program.model, input_size_limit=largest, output_size_limit=largest)
    RemoveUnusedNodesPass()(program.model)


def tidy(file: Path, ports: Ports) -> None:
    """Name the free axes, add the metadata, and remove what only the exporter needs: the shapes of
    inner values, which it inferred before its optimisations and onnxruntime's quantiser relies on,
    and where in Python an operation came from.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    axes = {**ports.inputs, **ports.outputs}
    found = [value.name for value in (*model.graph.input, *model.graph.output)]
    if found != list(axes):
        raise UserError(f"the graph has the inputs and outputs {found}, expected {list(axes)}")
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=False):
            if name is not None and not axis.HasField("dim_value"):
                axis.dim_param = name
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, dict(ports.metadata))
    onnx.save(model, file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's talk about packages that are not needed and its progress in emojis."""
    levels = {
        name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def session(file: Path) -> object:
    """onnxruntime on the CPU, one thread: results do not depend on their number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
