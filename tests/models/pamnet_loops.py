"""PAMNet-s, of which there is no file of reference outputs, once more: its equations with loops over edges and paths.

It reads a state dict under the authors' names, and shares nothing with our model but the functions of a path, which have tests of their own.
"""

import math

import torch
from torch.nn.functional import leaky_relu, linear, silu

from fastkd.models.layers.path_basis import PathBasis


def _mlp(state, name, x):
    place = 0
    while f"{name}.{place}.0.weight" in state:
        x = silu(linear(x, state[f"{name}.{place}.0.weight"], state[f"{name}.{place}.0.bias"]))
        place += 1
    return x


def _sin_basis(x, frequencies):
    return (1 / x - 21 * x**5 + 35 * x**6 - 15 * x**7) * torch.sin(frequencies * x)


def pamnet_s(state, width, layers, classes, positions, bonds):
    """Energy of one molecule, all of whose atoms are closer than 5 Å."""
    atoms, basis = len(classes), PathBasis(7, 6, 5.0)

    def distance(a, b):
        return (positions[a] - positions[b]).norm()

    between = [(j, i) for i in range(atoms) for j in range(atoms) if i != j]
    wide = {e: _mlp(state, "mlp_rbf_g", _sin_basis(distance(*e) / 5, state["rbf_g.freq"])) for e in between}
    near = {e: _mlp(state, "mlp_rbf_l", _sin_basis(distance(*e) / 5, state["rbf_l.freq"])) for e in bonds}
    paths = {}
    for j, i in bonds:
        for k, other in bonds:
            if other == i:
                u, v = positions[i] - positions[j], positions[k] - positions[i]
                angle = torch.acos((u @ v / (u.norm() * v.norm())).clamp(-1, 1)) if k != j else torch.tensor(math.pi).double()
                radial = basis.radial_part(v.norm()[None]).view(7, 6)
                features = (radial * basis.angular_part(torch.cos(angle)[None]).view(7, 1)).view(42)
                paths[(k, i), (j, i)] = _mlp(state, "mlp_sbf", features)
    x, energy = state["embeddings"][classes], 0.0

    def residual(name, h):
        return h + _mlp(state, name + ".mlp", h)

    for layer in range(layers):
        heads = []
        for plane in (f"global_layer.{layer}.", f"local_layer.{layer}."):
            h = _mlp(state, plane + "mlp_x1", x)
            total = list(h)
            if plane.startswith("global"):
                for (j, i), e in wide.items():
                    message = _mlp(state, plane + "mlp_m", torch.cat([h[i], h[j], e]))
                    total[i] = total[i] + message * (state[plane + "W_edge_attr.weight"] @ e)
            else:
                joined = {(j, i): torch.cat([h[i], h[j], e]) for (j, i), e in near.items()}
                for (j, i), e in near.items():
                    m = _mlp(state, plane + "mlp_m_ji", joined[j, i])
                    for (first, second), features in paths.items():
                        if second == (j, i):
                            sent = _mlp(state, plane + "mlp_m_jj", joined[first]) * (state[plane + "lin_rbf.weight"] @ near[first])
                            m = m + sent * _mlp(state, plane + "mlp_sbf", features)
                    total[i] = total[i] + (state[plane + "lin_rbf_out.weight"] @ e) * m
            h = residual(plane + "res1", _mlp(state, plane + "mlp_x2", torch.stack(total))) + x
            x = residual(plane + "res3", residual(plane + "res2", h))
            out = _mlp(state, plane + "mlp_out", x)
            heads.append((linear(out, state[plane + "W_out.weight"], state[plane + "W_out.bias"]), out @ state[plane + "W"]))
        (global_energy, global_score), (local_energy, local_score) = heads
        share = torch.softmax(leaky_relu(torch.cat([global_score, local_score], 1), 0.2), 1)
        energy = energy + (share * torch.cat([global_energy, local_energy], 1)).sum()
    return energy
