"""Every layer of a model on a batch, by kind and name, for comparing models with each other.

| name | kind | what |
|---|---|---|
| ``regular_k`` | node, vector | embedding (k = 0), and the features after block k |
| ``x_k`` | node | x_E of output block k (GemNet-OC), where that is not the embedding |
| ``final`` | node, edge | what the model offers to distillation, where that is not the last block's |
| ``edge_sum``, ``edge_vector_sum`` | node, vector | Σ over incoming edges of the edge feature, and of its product with the direction: targets of e2n and v2v |
| path of a module | any | captured by a hook in a foreign model |

Example:
    >>> reader = LayerReader(load_teacher("embedded"), "teacher")
    >>> reader(batch).values["node"]["regular_1"].shape
    torch.Size([17, 64])
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.models.base import Features
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.hooks import Capture, Feature, Sizes
from fastkd.teachers.inspect import inspect_teacher
from fastkd.teachers.output import Need
from fastkd.teachers.teacher import Teacher, edges_to_atoms, unit_vectors
from fastkd.teachers.torch_module import ModuleTeacher

KINDS = ("node", "vector", "edge")
#: Captures every module of a foreign model that looks like one of `KINDS`.
ALL = "all"
EDGE_SUM, EDGE_VECTOR_SUM, FINAL = "edge_sum", "edge_vector_sum", "final"


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers of one model on one batch."""

    #: kind → name → [n_atoms, c], [n_atoms, 3, c] or [n_edges, c]
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    edges: CSRGraph | None = None  #: whose edges those of kind edge are; None if there are none
    direction: Tensor | None = None  #: [n_edges, 3], tells periodic images of one edge apart

    def same_edges(self, other: Layers) -> bool:
        """Whether both have edge features, of the same edges in the same order."""
        if self.edges is None or other.edges is None or self.direction is None or other.direction is None:
            return False
        if self.edges is not other.edges and not (
            torch.equal(self.edges.edge_src, other.edges.edge_src) and torch.equal(self.edges.edge_dst, other.edges.edge_dst)
        ):
            return False
        return torch.allclose(self.direction.double(), other.direction.double(), rtol=0, atol=1e-4)


class LayerReader:
    """Asks a model for all its layers.

    Args:
        teacher: ours, or a foreign torch module.
        capture: for a foreign module: what to capture in place of what it declares, as `parse_capture` takes it.
        sums: whether edges summed into atoms are layers too; they are targets of e2n and v2v, so a teacher has them.

    Raises:
        ConfigError: if the model has no layers that could be read, or there is no such module.
    """

    def __init__(self, teacher: BaseTeacher, capture: Sequence[str] = (), *, sums: bool = True) -> None:
        self.teacher, self.sums = teacher, sums
        self._wanted = tuple(capture)
        self._captures: tuple[Capture, ...] = ()
        if isinstance(teacher, Teacher):
            if capture:
                raise ConfigError(
                    f"{teacher.source} is a model of fastkd, whose layers are known; modules are captured in foreign models only"
                )
        elif not isinstance(teacher, ModuleTeacher):
            raise ConfigError(f"{teacher.source} gives labels only, so it has no layers to compare; take a model")

    @property
    def features(self) -> tuple[Feature, ...]:
        """What is captured in a foreign module; complete after `start`."""
        return tuple(feature for capture in self._captures for feature in capture.features)

    def start(self, batch: Batch) -> None:
        """Look at a first batch; finds out what can be captured in a foreign module, and checks every shape.

        Raises:
            ConfigError: if nothing can be captured, or something has another shape than its kind.
        """
        teacher = self.teacher
        if not isinstance(teacher, ModuleTeacher):
            return
        teacher.start(batch)
        features: list[Feature] = []
        for text in self._wanted:
            features += _everything(teacher, batch) if text == ALL else [parse_capture(text)]
        if not self._wanted:
            features = [feature for feature in teacher.features if feature.kind in KINDS]
        self._captures = tuple(Capture(teacher.module, [feature], teacher.source) for feature in features)
        if not any(self(batch).values.values()):
            raise ConfigError(
                f"{teacher.source} declares no node, vector or edge features; name modules to capture "
                f"(`fastkd inspect teacher {teacher.source}` lists them), or {ALL}"
            )

    def __call__(self, batch: Batch) -> Layers:
        """All layers, detached, in the model's own dtype and on its device."""
        teacher = self.teacher
        batch = batch.to(device=teacher.device, dtype=teacher.dtype)
        if isinstance(teacher, ModuleTeacher):
            return self._foreign(teacher, batch)
        assert isinstance(teacher, Teacher)
        with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            features = teacher.potential(batch, forces=False, create_graph=False).features
            return _own(features, batch, teacher, sums=self.sums)

    def _foreign(self, teacher: ModuleTeacher, batch: Batch) -> Layers:
        with contextlib.ExitStack() as stack:
            for capture in self._captures:
                stack.enter_context(capture)
            # what a model hands over itself, without a hook
            hooked = {feature.kind for feature in teacher.features}
            offered = [kind for kind in ("node", "vector") if kind in teacher.offer.widths and kind not in hooked and not self._wanted]
            asked: frozenset[Need] = frozenset(offered) or (frozenset({"energy"}) & teacher.offer.outputs) or frozenset({"degree"})
            output = teacher(batch, asked)
        graph = None if teacher.cutoff is None else batch.graph(teacher.cutoff)
        sizes = Sizes(batch.num_atoms, None if graph is None else graph.num_edges, batch.num_graphs)
        values: dict[str, dict[str, Tensor]] = {kind: {FINAL: getattr(output, kind)} for kind in offered}
        for capture in self._captures:
            (feature,) = capture.features
            name = f"{feature.module}.{feature.output}" if feature.output else feature.module
            values.setdefault(feature.kind, {})[name] = capture.take(sizes, teacher.source)[feature.kind].detach()
        if graph is None or "edge" not in values:
            return Layers(values)
        return Layers(values, graph.csr, unit_vectors(batch, graph))


def _own(features: Features, batch: Batch, teacher: Teacher, *, sums: bool) -> Layers:
    blocks = teacher.potential.num_blocks
    values: dict[str, dict[str, Tensor]] = {"node": {f"regular_{k}": layer for k, layer in enumerate(features.layers)}}
    last = features.layers[-1] if features.layers else None
    if features.node is not None and (last is None or last.shape != features.node.shape or not torch.equal(last, features.node)):
        values["node"][FINAL] = features.node
    for number, output in enumerate(features.outputs):
        if not any(output.node is layer for layer in features.layers):
            values["node"][f"x_{number}"] = output.node
    # vectors are zero before the first block: nothing to compare
    vectors = features.vector_layers[-blocks:] if features.vector_layers else ()
    values["vector"] = {f"regular_{k + 1}": layer for k, layer in enumerate(vectors)}
    if features.vector is not None and not vectors:
        values["vector"][FINAL] = features.vector
    edge, own = features.edge, features.edge_graph
    if edge is None:
        return Layers({kind: found for kind, found in values.items() if found})
    values["edge"] = {FINAL: edge}
    graph = batch.graph(teacher.cutoff)
    csr, direction = (graph.csr, unit_vectors(batch, graph)) if own is None else (own.csr, own.direction)
    if sums:
        total = edges_to_atoms(edge, csr, direction, frozenset({"edge_sum", "edge_vector_sum"}))
        for kind, name in (("node", EDGE_SUM), ("vector", EDGE_VECTOR_SUM)):
            value = total[name]
            assert value is not None
            values[kind][name] = value
    return Layers({kind: found for kind, found in values.items() if found}, csr, direction)


def parse_capture(text: str) -> Feature:
    """``MODULE:KIND[:OUTPUT[:LAYOUT]]`` as a feature to capture.

    Raises:
        ConfigError: if the kind is none of node, vector, edge.
    """
    module, *rest = text.split(":")
    kind, output, layout = (*rest, "", "", "")[:3]
    if not module or kind not in KINDS or len(rest) > 3:
        raise ConfigError(f"{text!r}: write MODULE:KIND[:OUTPUT[:LAYOUT]] with a kind of {', '.join(KINDS)}, or {ALL}")
    return Feature(module, kind, output, layout or "auto")  # type: ignore[arg-type]


def _everything(teacher: ModuleTeacher, batch: Batch) -> list[Feature]:
    found = inspect_teacher(teacher, batch).found
    return [
        Feature(item.module, item.kind, item.output, item.layout or "auto") for item in found if item.kind in ("node", "vector", "edge")
    ]
