"""Student-side maps and teacher-side reductions against what the papers' public code computes, in float64."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fastkd_kernels import CSRGraph
from safetensors.torch import load_file
from torch import Tensor

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import build_terms
from fastkd.distill.projections import LinearProjection
from fastkd.models.ocp import load_painn
from fastkd.teachers import Offer, TeacherOutput
from tests.parity import ReferenceFile, make_batch, read

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
