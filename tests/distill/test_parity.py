"""Student-side maps and teacher-side reductions against what the papers' public code computes, in float64."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fastkd_kernels import CSRGraph
from safetensors.torch import load_file
from torch import Tensor

from fastkd.config import DistillConfig, TermConfig
from fastkd.data.batch import Batch
from fastkd.distill import build_terms
from fastkd.distill.projections import LinearProjection
from fastkd.models.ocp import load_painn
from fastkd.teachers import Offer, TeacherOutput
from tests.parity import ReferenceFile, make_batch, read

from .test_structure_losses import geometric_of, gram_cka, gsp_of, lsp_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
FOLDERS = [Path(os.environ.get("FASTKD_PARITY", FIXTURES)), FIXTURES]
NAMES = {"n2n": "n2n", "n2e": "e2n", "v2v": "v2v"}  # the reference's name of a map → the strategy that uses it


def reference(name: str) -> ReferenceFile:
    for folder in FOLDERS:
        if (folder / f"{name}.safetensors").is_file():
            return read(folder / f"{name}.safetensors")
    pytest.skip(f"no {name}.safetensors; set FASTKD_PARITY to the folder with reference outputs")


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", ["ocp_painn_molecules", "ocp_painn_slabs"])
@pytest.mark.parametrize("explicit", [False, True], ids=["last", "layer 3"])
def test_student_maps(name, explicit):
    """Our terms with the reference's weights: the loss against the reference's own mapped features must vanish."""
    file = reference(name)
    foreign = load_painn(file.config, file.state)
    model = foreign.model.double()
    batch = make_batch(file.inputs, foreign)
    student = model(batch)
    node, edge = file.config["teacher_node_dim"], file.config["teacher_edge_dim"]
    layers = [file.config["num_layers"]] if explicit else []
    config = DistillConfig(terms=[TermConfig(kind=kind, loss="mae", student_layers=layers) for kind in ("n2n", "e2n", "v2v")])
    terms = build_terms(config, Offer.of(model, "student"), Offer("teacher", {"node": node, "edge": edge})).double()
    for theirs, ours in NAMES.items():
        projection = terms.terms[ours].projection
        assert isinstance(projection, LinearProjection)
        weight, bias = foreign.maps[theirs]
        projection.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    target = TeacherOutput(
        node=file.outputs["n2n"], edge_sum=file.outputs["n2e"], edge_vector_sum=file.outputs["v2v"], degree=None, cutoff=model.cutoff
    )
    values = terms(student, target, batch)
    for theirs, ours in NAMES.items():
        scale = float(file.outputs[theirs].abs().mean())
        assert values[ours].raw.item() < 1e-9 * scale, ours
    assert {name: foreign.maps[name][1] is not None for name in NAMES} == {"n2n": True, "n2e": True, "v2v": False}


def gemnet_oc_edges(name: str) -> dict[str, Tensor]:
    if name == "shipped":
        return load_file(FIXTURES.parent / "distill" / "gemnet_oc_edges.safetensors")
    return reference(name).outputs


@pytest.mark.parametrize("name", ["shipped", "ocp_gemnetoc_slabs"])
def test_teacher_reductions(name):
    """Σ x_F and Σ x_F ⊗ r̂ of GemNet-OC's edges, summed by our terms, are the reference's."""
    out = gemnet_oc_edges(name)
    source, target = out["edge_index"]
    atoms, width = out["e2n"].shape
    teacher = TeacherOutput(edge=out["edge"], edge_direction=out["edge_direction"], graph=CSRGraph.from_edges(source, target, atoms))
    config = DistillConfig(terms=[TermConfig(kind="e2n"), TermConfig(kind="v2v")])
    terms = build_terms(config, Offer("student", {"node": 4, "vector": 4}), Offer("teacher", {"edge": width}))
    assert distance(terms.terms["e2n"].teacher_feature(teacher), out["e2n"]) < 1e-9
    assert distance(terms.terms["v2v"].teacher_feature(teacher), out["e2v"]) < 1e-9


#: kind → output of the reference that is the student's mapped feature, output of GemNet-OC that is the target, field of the teacher
SIDES = {
    "n2n": ("n2n", "node", "node"),
    "e2n": ("n2e", "e2n", "edge_sum"),
    "v2v": ("v2v", "e2v", "vector"),
    "v2v_geometric": ("v2v", "e2v", "vector"),
}
ELEMENTS = {"mse": np.square, "mae": np.abs, "huber": lambda r: np.where(np.abs(r) <= 1, r * r / 2, np.abs(r) - 0.5)}
LOSSES = [(kind, loss) for kind in ("n2n", "e2n") for loss in (*ELEMENTS, "cka", "lsp", "gsp")]
LOSSES += [("v2v", loss) for loss in (*ELEMENTS, "gsp")] + [("v2v_geometric", "auto")]


def restated(loss: str, x: np.ndarray, y: np.ndarray, batch: Batch, cutoff: float) -> float:
    """The formulas of the spec in NumPy."""
    if loss in ELEMENTS:
        return float(ELEMENTS[loss](x - y).mean())
    if loss == "cka":
        return 1 - gram_cka(x, y)
    if loss == "lsp":
        return lsp_of(x, y, batch, cutoff)
    ptr = batch.atom_ptr.tolist()
    return gsp_of(x, y, ptr) if loss == "gsp" else geometric_of(x, y, ptr, 0.5)


@pytest.mark.parametrize("which", ["molecules", "slabs"])
@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=[" ".join(item) for item in LOSSES])
def test_losses_between_features_of_the_references(kind, loss, which):
    """A PaiNN student with the reference's maps, and what the reference's GemNet-OC says of the same structures."""
    file, other = reference(f"ocp_painn_{which}"), reference(f"ocp_gemnetoc_{which}")
    foreign = load_painn(file.config, file.state)
    model = foreign.model.double()
    batch = make_batch(file.inputs, foreign)
    theirs, target, field = SIDES[kind]
    mine = file.outputs[theirs]
    said = other.outputs[target][..., : mine.shape[-1]]
    assert said.shape == mine.shape
    # of one size, so that a loss cannot overlook one side
    said = said * (mine.std() / said.std())
    width = {"node": "node", "edge_sum": "edge", "vector": "vector"}[field]
    config = DistillConfig(terms=[TermConfig(kind=kind, loss=loss)])
    terms = build_terms(config, Offer.of(model, "student"), Offer("teacher", {width: mine.shape[-1]})).double()
    weight, bias = foreign.maps[theirs]
    terms.terms[kind].projection.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    value = terms(model(batch), TeacherOutput(**{field: said}), batch)[kind].raw.item()
    expected = restated(loss, mine.numpy(), said.numpy(), batch, model.cutoff)
    assert expected > 1e-6
    assert value == pytest.approx(expected, rel=1e-8)
