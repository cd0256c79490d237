"""Which options of a term go together, and what it takes of student and teacher: everything a config may have wrong, said before training."""

from __future__ import annotations

from collections.abc import Mapping

from fastkd.config import TermConfig
from fastkd.errors import ConfigError
from fastkd.models.base import FINAL
from fastkd.teachers.output import NeedName, Offer, feature_list

OUTPUT_KINDS = ("energy", "forces", "atom_energy")
VECTOR_KINDS = ("v2v", "v2v_geometric")

#: Losses that are no mean over elements, and the strategies that they compare.
STRUCTURE_LOSSES = {"cka": ("n2n", "e2n"), "lsp": ("n2n", "e2n"), "gsp": ("n2n", "e2n", "v2v")}
#: Why they take no others.
_WHY = {
    "cka": "centring acts on components of vectors",
    "lsp": "distances along edges are between scalar features of atoms",
    "gsp": "distances are between features of atoms",
}

#: Keys that belong to some strategies only: key → (strategies, value where it is not given).
_OWN_KEYS: dict[str, tuple[tuple[str, ...], object]] = {
    "projection": (("n2n", "e2n", "e2e", *VECTOR_KINDS), "linear"),
    "student_layers": (("n2n", "e2n", "e2e", *VECTOR_KINDS), []),
    "teacher_layer": (("n2n", "e2n", "e2e", *VECTOR_KINDS), FINAL),
    "geometric_mix": (("v2v_geometric",), 0.5),
    "reduce": (("e2n", *VECTOR_KINDS), "sum"),
    "edges": (("e2e",), "same"),
    "embeddings": (("lkm",), "auto"),
    "detach_mean": (("lkm",), False),
    "agree": ((*OUTPUT_KINDS, "hessian"), 0.0),
    "teacher": ((*OUTPUT_KINDS, "hessian", "n2n", "e2n", "e2e", *VECTOR_KINDS), ""),
    "rows": (("hessian",), 1),
    "teacher_rows": (("hessian",), "auto"),
    "student_rows": (("hessian",), "exact"),
    "difference_step": (("hessian",), 0.01),
}

#: Strategy → (kind of the teacher's feature, what to ask for), the first that it offers.
_WANTED: dict[str, tuple[tuple[str, NeedName], ...]] = {
    "n2n": (("node", "node"),),
    "e2n": (("edge", "edge_sum"),),
    "e2e": (("edge", "edge"),),
    "v2v": (("vector", "vector"), ("edge", "edge_vector_sum")),
    "v2v_geometric": (("vector", "vector"), ("edge", "edge_vector_sum")),
}
_MENDS = {
    "n2n": "use a term on outputs (energy, forces, atom_energy)",
    "e2n": "use n2n, or a teacher with edge features",
    "e2e": "use n2n, or a teacher with edge features",
    "v2v": "use n2n, or a teacher with vector or edge features",
    "v2v_geometric": "use n2n, or a teacher with vector or edge features",
}


def check_options(item: TermConfig, where: str) -> None:
    """Options that exclude each other, whoever student and teacher are.

    Raises:
        ConfigError: naming the term and the options.
    """
    if item.loss == "l2" and item.kind not in ("forces", "hessian"):
        raise ConfigError(
            f"{where}: loss l2 is the mean norm of 3-vectors and belongs to kinds forces and hessian; choose mse, mae or huber"
        )
    for key, (kinds, default) in _OWN_KEYS.items():
        if item.kind not in kinds and getattr(item, key) != default:
            why = "; outputs are compared as they are" if item.kind in OUTPUT_KINDS else ""
            raise ConfigError(f"{where}: {key} belongs to {' and '.join(kinds)}{why}; leave it away")
    if item.kind == "v2v_geometric" and item.loss != "auto":
        raise ConfigError(f"{where}: the loss of v2v_geometric is its own; leave loss away, or choose kind v2v")
    kinds = STRUCTURE_LOSSES.get(item.loss, (item.kind,))
    if item.kind not in kinds and item.kind != "lkm":
        raise ConfigError(f"{where}: loss {item.loss} is for {', '.join(kinds)}: {_WHY[item.loss]}; choose mse, mae or huber")
    if item.kind in VECTOR_KINDS and item.projection == "mlp":
        raise ConfigError(f"{where}: an MLP acts on components and breaks rotational symmetry; choose projection linear or identity")


def choose_teacher(item: TermConfig, where: str, teacher: Offer | None, teachers: Mapping[str, Offer]) -> Offer:
    """Whose offer a term is checked against: the only teacher's, that of the teacher that it names, or that of all together.

    Args:
        item: the term.
        where: the term, for messages.
        teacher: the only one, or all as one; None if there is none.
        teachers: by name, if there are several.

    Raises:
        ConfigError: if there is none such, or the term wants features and names nobody, or agreement of one teacher with itself.
    """
    if teacher is None:
        raise ConfigError(f"{where} needs a teacher: set teacher.path (a folder, or 'embedded'), or drop the term")
    names = ", ".join(teachers)
    if not teachers:
        for key in ("teacher", "agree"):
            if getattr(item, key):
                raise ConfigError(f"{where}: {key} is for several teachers, and there is one; leave it away, or name more in teachers")
        return teacher
    if item.agree and item.kind in OUTPUT_KINDS and item.kind not in teacher.outputs:
        raise ConfigError(f"{where}: agree compares the {item.kind} of all teachers ({names}), and not all predict it; leave agree away")
    if item.teacher:
        if item.teacher not in teachers:
            raise ConfigError(f"{where}: there is no teacher {item.teacher!r}, only {names}")
        return teachers[item.teacher]
    if item.kind in OUTPUT_KINDS or item.kind == "hessian":
        return teacher
    raise ConfigError(f"{where}: features of different teachers have no mean; add teacher: NAME, one of {names}")


def student_feature(item: TermConfig, where: str, student: Offer) -> tuple[str, int]:
    """Kind of the student's feature and its channels.

    Raises:
        ConfigError: if the student does not have it, at the layers that are asked for.
    """
    kind = "vector" if item.kind in VECTOR_KINDS else "edge" if item.kind == "e2e" else "node"
    if kind not in student.widths:
        mends = {
            "vector": "use a student with vector features (painn), or drop the term",
            "edge": "use a student with edge features (painn, gemnet_oc)",
        }
        raise ConfigError(
            f"{where} needs {kind} features of the student, but {student.name} offers {student}; {mends.get(kind, 'drop the term')}"
        )
    for layer in item.student_layers:
        if not 1 <= layer <= student.blocks:
            raise ConfigError(
                f"{where}: student_layers has {layer}, but the blocks of {student.name} are numbered from 1 to {student.blocks}"
            )
        if kind == "edge" and kind not in student.at(f"regular_{layer}"):
            raise ConfigError(f"{where}: {student.name} has no edge features after single blocks; leave student_layers away")
    return kind, student.widths[kind] * max(len(item.student_layers), 1)


def teacher_feature(item: TermConfig, where: str, teacher: Offer) -> tuple[NeedName, int]:
    """What to ask of the teacher at ``teacher_layer``, and its channels.

    Raises:
        ConfigError: if the teacher has no such layer, or not the feature there.
    """
    layer = item.teacher_layer
    widths = teacher.at(layer)
    if layer != FINAL and not widths:
        have = ", ".join(name for name in teacher.layers if name != FINAL)
        raise ConfigError(
            f"{where}: teacher_layer = {layer}, but {teacher.name} has {have or 'the final layer only; a foreign teacher takes modules in teacher.features'}"
        )
    for kind, need in _WANTED[item.kind]:
        if kind in widths:
            return need, widths[kind]
    kinds = " or ".join(kind for kind, _ in _WANTED[item.kind])
    if layer == FINAL:
        raise ConfigError(f"{where} needs {kinds} features of the teacher, but {teacher.name} offers {teacher}; {_MENDS[item.kind]}")
    with_it = [name for name, here in teacher.layers.items() if any(kind in here for kind, _ in _WANTED[item.kind])]
    mend = f"layers with them: {', '.join(with_it)}" if with_it else _MENDS[item.kind]
    raise ConfigError(
        f"{where} needs {kinds} features of the teacher at layer {layer}, where {teacher.name} offers {feature_list(widths)}; {mend}"
    )


def check_edges(item: TermConfig, where: str, student: Offer, teacher: Offer) -> None:
    """e2e compares features of the same edges: student and teacher must have these, or the student must take the teacher's.

    Raises:
        ConfigError: if they differ, naming both.
    """
    if item.edges == "teacher":
        if not student.takes_any_graph:
            raise ConfigError(f"{where}: edges=teacher needs a student that computes on any edges (painn), which {student.name} does not")
        if teacher.cutoff is None or student.cutoff is None or student.cutoff < teacher.cutoff:
            raise ConfigError(
                f"{where}: edges=teacher needs a student that sees as far as the teacher, but model.cutoff is {student.cutoff} Å and the "
                f"teacher's {teacher.cutoff} Å"
            )
        return
    if not student.edge_rule or student.edge_rule != teacher.edge_rule:
        mend = "or edges=teacher, which hands the teacher's edges to the student" if student.takes_any_graph else "or use e2n"
        raise ConfigError(
            f"{where} compares features of the same edges, but edges of {student.name} are {student.edge_rule or 'unknown'}, and those of "
            f"{teacher.name} {teacher.edge_rule or 'unknown'}; choose cutoffs and neighbour limits that agree, {mend}"
        )
