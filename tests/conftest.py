"""Which tests are long ones beside those that say so themselves: `make test` leaves them to `make slow`, so that it takes less than ten minutes on two cores.

Of every kernel one case stays at three orders in Triton's interpreter, which takes seconds for each; numba and the reference run all cases, and every variant is compiled ahead of
time. Of what the other table lists, a shorter test beside it stays.
"""

from __future__ import annotations

import re

import pytest

#: file::test, and which of its cases are long in Triton, as regular expressions that are found in the id.
LONG_IN_TRITON = (
    # variants of the ops with the largest kernels; of each, one for directed and one for undirected graphs is quick at three orders
    ("test_all_ops.py::test_three_orders", r"^painn_(radial\[first|exact\[(?!gaussian, (cosine\]|polynomial)))"),
    ("test_all_ops.py::test_(expanded_inputs|backward_twice)", r"^painn_(radial\[|exact\[(?!gaussian, cosine\]))"),
    ("test_all_ops.py::test_gradcheck_on_strided_inputs", r"^(radial_conv|painn_message)-"),
    ("test_all_ops.py::test_(bfloat16_in_triton|same_bits_twice)", r"^painn_(exact|radial)"),
    # undirected graphs have the same kernels behind other reads and writes
    ("test_painn_(exact|radial|radial_triton).py", r"(^|-)pairs(-|$)"),
    ("test_cfconv_exact.py::test_every_combination", r"-(shifted_softplus|tanh)$"),
    ("test_global_structure_loss.py::test_the_closed_pair", r"^True"),
    ("test_projected_loss.py::test_weights_are_differentiable", r"^(mae|huber)"),
    ("test_compat_patches.py::test_triton", r"^(ocp_painn|dimenet)"),
)


#: The same for all backends.
LONG = (
    # whole programs: examples, benchmarks and commands on the smallest input that makes sense
    ("test_example_lkm.py::test_the_lkm_study_in_small", ""),
    ("test_example_strategies.py::test_one_command_from_data_to_table", ""),
    ("test_bench_step.py::test_a_pair_is_measured_with_every_kind", ""),
    ("test_seams_commands.py::test_reports_tables_and_analysis", ""),
    ("test_ablate.py::test_halving_and_a_resume_in_the_middle", ""),
    ("test_compat_scatter.py::test_(the_suite_script|pytorch_geometric_uses_it)", ""),
    ("test_package.py::test_compiled_kernels_on_disk", ""),
    ("test_packaging.py::test_(two_versions_from_a_hub|the_wheel_works)", ""),
    # many edges, wide layers, much to compile
    ("test_dimenet_peers.py::test_random_molecules_with_neighbours", ""),
    ("test_cfconv_exact.py::test_many_tiles_and_wide_networks", ""),
    ("test_triplet_filter.py::test_threads_change_no_bit", ""),
    ("test_aot.py::test_spills_are_seen", "^gfx942"),
    # variants of a model or a schedule whose first is quick
    ("test_gradients.py::test_weight_gradients_of_a_force_loss", "^(pamnet_s|mxmnet_smooth|gemnet_oc_(bessel|direct_smooth))"),
    ("test_compat_patches.py::test_training_on_forces", r"^(dimenet|ocp_painn)"),
    ("test_compile.py::test_one_graph_for_all_sizes", ""),
    ("test_hessian.py::test_training_brings_rows_nearer", "^pair1"),
    ("test_seams_commands.py::test_an_ablation_of_what_meets", "^synthetic"),
    ("test_loop.py::test_resume_is_bitwise", "^(alone|tables|distilled)-(cosine|step|plateau)"),
    ("test_all_ops.py::test_gradcheck_on_strided_inputs", r"^painn_(radial|exact)\[(first|bessel|exp_normal|gaussian, (polynomial|none))"),
)


def _is_long(item: pytest.Item, table: tuple[tuple[str, str], ...]) -> bool:
    where, _, case = item.nodeid.partition("[")
    return any(re.search(test, where) and re.search(cases, case.removesuffix("]")) for test, cases in table)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_long(item, LONG) or (item.get_closest_marker("triton") is not None and _is_long(item, LONG_IN_TRITON)):
            item.add_marker(pytest.mark.slow)
