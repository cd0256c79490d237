"""The typed schema of a training run: it is the validation, the ``--help``, the documentation and the JSON schema.

Every field has a default and a description that ends with its unit in square brackets where it has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

#: Generators of random numbers take 64 bits.
Seed = Annotated[NonNegativeInt, Field(le=2**63 - 1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, frozen=True)


class RunConfig(Section):
    """Where a run lives and how it is started."""

    dir: Path = Field(Path("runs/default"), description="run folder; must not hold a run unless run.resume is true")
    seed: Seed = Field(0, description="seed of initial weights, batch order and choice of labelled structures")
    resume: bool = Field(False, description="go on with the run in run.dir from its last checkpoint, bit for bit")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "float64"] = Field("float32", description="of weights and positions; energies are summed in float64")
    threads: NonNegativeInt = Field(
        0, description="CPU threads; 0 measures a few steps, and takes more than 1 only if they are 1.2 times faster"
    )
    report: bool = Field(True, description="write report.html with learning curves and parity plots")
    inference_repeats: PositiveInt = Field(5, description="timed passes for atoms per second at inference")


class DataConfig(Section):
    """Which structures are used for what."""

    path: str = Field("embedded", description="HDF5 file (format v1), or 'embedded' for the data set that ships with fastkd")
    systems: list[str] = Field([], description="use only these systems of the file; empty uses all")
    train_split: str = Field("train", description="name of the split to train on")
    val_split: str = Field("val", description="name of the split that chooses the best checkpoint")
    test_split: str = Field("test", description="name of the split of the final table")
    labelled: NonNegativeInt = Field(0, description="how many training structures have labels, chosen by run.seed; 0 means all")
    unlabelled: NonNegativeInt = Field(0, description="how many more training structures are used without labels; needs a teacher")
    val_size: NonNegativeInt = Field(0, description="at most so many validation structures, evenly spaced; 0 means all")
    test_size: NonNegativeInt = Field(0, description="at most so many test structures, evenly spaced; 0 means all")
    batch_size: PositiveInt = Field(8, description="structures per batch, at most")
    batch_atoms: NonNegativeInt = Field(0, description="atoms per batch, at most; 0 means no limit")
    batch_edges: NonNegativeInt = Field(0, description="edges per batch, at most; 0 means no limit")
    labelled_fraction: float = Field(
        0.0, ge=0.0, le=1.0, description="share of each batch drawn from the labelled structures when some have none; 0 draws in proportion"
    )
    reference_energies: Literal["fit", "none"] | dict[str, float] = Field(
        "fit", description="energy of each element: fit by least squares to the labelled structures, none, or given as {symbol: E} [eV]"
    )
    allow_missing_labels: bool = Field(False, description="treat structures with NaN labels as unlabelled instead of stopping")


class ModelConfig(Section):
    """The model that is trained (the student, if there is a teacher)."""

    preset: str = Field("", description="a published model by name (docs/models.md), from which the other keys follow; empty for none")
    kind: Literal["painn", "schnet", "dimenet_pp", "gemnet_oc", "mxmnet", "pamnet", "pamnet_s"] = Field("painn", description="architecture")
    width: PositiveInt = Field(32, description="features per atom")
    layers: PositiveInt = Field(2, description="interaction blocks")
    radial: PositiveInt = Field(20, description="radial basis functions")
    cutoff: PositiveFloat = Field(5.0, description="neighbours are closer than this [Å]")
    forces: Literal["conservative", "direct"] = Field("conservative", description="−dE/dx, or a head of their own (PaiNN, GemNet-OC)")
    local: Literal["covalent", "distance", "bonds"] = Field(
        "covalent",
        description="MXMNet, PAMNet: bonds are closer than 1.25 × the sum of covalent radii, or than 2 Å, or are the data file's",
    )
    smooth: bool = Field(False, description="MXMNet, PAMNet: fade edges and bonds out where they end; the authors' models do not")
    scale_file: str = Field(
        "", description="GemNet-OC: fitted scale factors, from `fastkd fit-scales` or OCP (.json, .pt); empty leaves all of them at 1"
    )
    filters: Literal["auto", "table", "exact"] = Field(
        "auto",
        description="auto interpolates filters between knots where that is faster and as accurate; exact never does (docs/models.md)",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_preset(cls, values: Any) -> Any:
        """Fill in what follows from the preset; a key that was given must agree with it."""
        name = values.get("preset") if isinstance(values, dict) else None
        if not name or not isinstance(name, str):
            return values
        # models import this file
        from fastkd.errors import ConfigError
        from fastkd.models.presets import config_values

        try:
            fixed = config_values(name)
        except ConfigError as error:
            raise ValueError(f"preset: {error}") from None
        wrong = [f"{key}={values[key]}" for key, value in fixed.items() if key in values and values[key] != value]
        if wrong:
            says = ", ".join(f"{key}={value}" for key, value in fixed.items())
            raise ValueError(f"{', '.join(wrong)} contradicts preset={name}, which says {says}; leave out one of the two")
        return {**values, **fixed}


class TeacherFeatureConfig(Section):
    """One feature to capture in a foreign teacher."""

    module: str = Field(description="path of a submodule, as `fastkd inspect teacher` lists it")
    kind: Literal["node", "edge", "vector", "graph", "atom_energy"] = Field(description="what its rows are (docs/distillation.md)")
    output: str = Field("", description="which item, if the module returns a tuple (number) or a mapping (key)")
    layout: str = Field("auto", description="of its numbers: auto, axes_first, axes_last, or irreps such as 128x0e+64x1o")
    width: NonNegativeInt = Field(0, description="channels that must come; 0 takes what comes")


class AnyTeacherConfig(Section):
    """A frozen model to learn from."""

    path: str = Field(
        "",
        description="folder with model.safetensors and model.json, 'embedded', module:package.file:function, ase:package.file:function, "
        "an adapter such as so3lr or mace:FILE (docs/distillation.md), or empty for no teacher",
    )
    options: dict[str, object] = Field({}, description="keyword arguments of a foreign teacher's function or adapter")
    features: list[TeacherFeatureConfig] = Field([], description="to capture in a foreign teacher; empty takes what its adapter offers")
    device: str = Field("auto", description="auto (that of the run), cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "float64"] = Field(
        "auto", description="of its weights; auto is the run's for our own models, and what a foreign one has"
    )
    cache: Literal["memory", "disk", "none", "auto"] = Field(
        "memory",
        description="keep teacher outputs of each training structure in memory or in a file, or compute them anew; auto takes a file if it "
        "pays (docs/distillation.md)",
    )
    cache_path: Path = Field(Path("runs/cache"), description="disk: the file (.h5), or a folder in which each cache gets a name of its own")
    cache_dtype: Literal["own", "float32", "bfloat16", "float16"] | dict[str, Literal["own", "float32", "bfloat16", "float16"]] = Field(
        "own", description="disk: features are kept in this dtype, or {feature: dtype}; own keeps every bit, others print their error"
    )
    cache_preload: NonNegativeFloat = Field(4.0, description="disk: a cache that takes no more than this is loaded into memory whole [GB]")


class TeacherConfig(AnyTeacherConfig):
    """A frozen model to learn from."""

    members: list[str] = Field(
        [], description="paths of more teachers like this one: an ensemble of member_1 (path), member_2, …, with the same options"
    )


class NamedTeacherConfig(AnyTeacherConfig):
    """One of several teachers."""

    name: str = Field(description="how terms and tables call it", pattern=r"^[a-z][a-z0-9_]*$")


class TermConfig(Section):
    """One distillation term: strategy, weight, loss and projection."""

    kind: Literal["energy", "forces", "atom_energy", "n2n", "e2n", "e2e", "v2v", "v2v_geometric", "lkm", "hessian"] = Field(
        description="strategy (docs/distillation.md); lkm mixes the student's own layers and needs no teacher"
    )
    teacher: str = Field("", description="with several teachers: the name of one; empty takes the mean of all, for terms on outputs")
    agree: NonNegativeFloat = Field(
        0.0, description="with several teachers: only where their standard deviation is at most this [eV, eV/Å, eV/Å²]; 0 for everywhere"
    )
    weight: NonNegativeFloat = Field(
        1.0, description="λ, multiplies the term, or the ratio of weight_rule=gradient_ratio; with a schedule, its last value"
    )
    weight_rule: Literal["fixed", "gradient_ratio"] = Field(
        "fixed", description="gradient_ratio: weight is the ratio ‖λ∇L_KD‖ / ‖∇L_0‖ to hold, and λ follows; needs distill.gradient_every"
    )
    when_passed: Literal["keep", "halve", "stop"] = Field(
        "keep", description="what becomes of λ at each evaluation at which the student's validation error is below the teacher's"
    )
    weight_schedule: Literal["constant", "linear", "cosine", "step"] = Field(
        "constant", description="how λ goes from weight_start to weight: in a line or half a cosine, or at one step"
    )
    weight_start: NonNegativeFloat = Field(0.0, description="linear, cosine, step: first value of λ")
    weight_from: NonNegativeInt = Field(0, description="linear, cosine: optimiser steps before the ramp begins")
    weight_until: NonNegativeInt = Field(0, description="linear, cosine, step: optimiser steps after which λ is weight")
    loss: Literal["auto", "mse", "mae", "huber", "l2", "cka", "lsp", "gsp"] = Field(
        "auto", description="auto is the papers' choice: mae for energies and lkm, l2 (mean norm) for forces and hessian, mse for features"
    )
    projection: Literal["linear", "identity", "mlp"] = Field("linear", description="of the student's feature; v2v has no bias, ever")
    teacher_layer: str = Field(
        "final",
        pattern=r"^(final|(regular|x)_\d+)$",
        description="teacher's feature: final, regular_k (embeddings after block k, 0: before the first), or x_k (output block k)",
    )
    geometric_mix: float = Field(0.5, ge=0.0, le=1.0, description="v2v_geometric: share of 1 − cos; the rest is the difference of lengths")
    edges: Literal["same", "teacher"] = Field(
        "same", description="e2e: student and teacher must have the same edges, or the student computes on the teacher's (PaiNN)"
    )
    embeddings: str = Field(
        "auto", description="lkm: which embeddings of the student are mixed (docs/distillation.md); auto is the model's default"
    )
    detach_mean: bool = Field(False, description="lkm: no gradient through the mean of the embeddings")
    reduce: Literal["sum", "mean"] = Field("sum", description="of teacher edges into atoms (e2n, v2v from edge features)")
    rows: PositiveInt = Field(1, description="hessian: rows of each structure's Hessian, drawn anew in every step")
    teacher_rows: Literal["auto", "exact", "difference"] = Field(
        "auto", description="hessian: the teacher's rows by autograd or by central differences; auto is exact for models of fastkd"
    )
    student_rows: Literal["exact", "difference"] = Field(
        "exact", description="hessian: the student's rows, by autograd or central differences"
    )
    difference_step: PositiveFloat = Field(0.01, description="hessian: step of central differences [Å]")
    student_layers: list[int] = Field([], description="blocks whose features are concatenated, counted from 1; empty means the last")


class DistillConfig(Section):
    """Distillation terms, in addition to the loss on labels."""

    terms: list[TermConfig] = Field([], description="list of terms")
    gradient_every: NonNegativeInt = Field(
        0, description="optimiser steps between measurements of each term's gradient against that of the labels; 0 for none"
    )
    gradient_average: float = Field(0.9, ge=0.0, lt=1.0, description="decay of the moving averages of gradient norms, per measurement")
    watch_cka: NonNegativeInt = Field(
        0, description="validation structures on which every evaluation measures how alike the layers of each feature term are; 0 for none"
    )


class AugmentConfig(Section):
    """Structures besides those of the data: moved atoms while training, and synthetic structures mixed in."""

    kind: Literal["none", "rattle", "adversarial", "noise"] = Field(
        "none",
        description="distil on rattled or adversarial copies of each batch (the loss on labels stays on the batch itself), or train without "
        "a teacher on noisy positions with unchanged labels (docs/distillation.md)",
    )
    sigma: NonNegativeFloat = Field(0.1, description="standard deviation of random displacements; adversarial: of where it starts [Å]")
    length: NonNegativeFloat = Field(0.0, description="rattle, noise: scale each displacement to this length; 0 leaves it as drawn [Å]")
    along_force: Literal["any", "remove", "only", "around"] = Field(
        "any", description="rattle: any direction, without the component along the force, that component only, or drawn around the force"
    )
    force_scale: NonNegativeFloat = Field(1.0, description="rattle around forces: mean displacement over force [Å²/eV]")
    ascent: Literal["adam", "sphere", "ball", "orthogonal"] = Field(
        "sphere", description="adversarial: how to climb; Adam, or projected gradients (a step of one length, clipped, or across the force)"
    )
    ascent_steps: PositiveInt = Field(1, description="adversarial: steps uphill per batch")
    ascent_rate: PositiveFloat = Field(0.1, description="adversarial: rate of adam [Å], of ball, and of prop and inv_prop")
    ascent_length: PositiveFloat = Field(0.1, description="adversarial: α, length of a step of sphere and fixed, largest of ball [Å]")
    ascent_rule: Literal["fixed", "prop", "inv_prop"] = Field(
        "fixed", description="orthogonal: length of a step; ascent_length, ascent_rate · ‖F‖, or ascent_rate / ‖F‖"
    )
    force_penalty: NonNegativeFloat = Field(
        0.0, description="adversarial: subtract this times the teacher's mean ‖F‖ from what is climbed [Å/eV]"
    )
    teacher_gradient: bool = Field(True, description="adversarial: differentiate the teacher too, not the student alone")
    limit: NonNegativeFloat = Field(1.0, description="no atom is moved further than this from its place; 0 for no limit [Å]")
    synthetic: str = Field("", description="HDF5 file of synthetic structures (`fastkd synthesize`) to mix into training; empty for none")
    synthetic_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="q, probability that a structure of a batch is synthetic")
    synthetic_weight: PositiveFloat = Field(1.0, description="r, weight of a synthetic structure in the loss over that of another")


class LossConfig(Section):
    """The loss on labels: energy_weight · MAE(E) + forces_weight · mean ‖ΔF‖."""

    energy_weight: NonNegativeFloat = Field(1.0, description="a_E, weight of the energy error")
    forces_weight: NonNegativeFloat = Field(
        100.0, description="a_F, weight of the force error; 0: energies are labels enough, and training computes forces only if a term does"
    )
    train_on_free_atoms: bool = Field(
        True, description="where the data has `fixed`, leave the forces of fixed atoms out of the loss on labels and of distilled forces"
    )
    per_atom_energy: bool = Field(False, description="divide each structure's energy error by its number of atoms")


class TrainConfig(Section):
    """Optimisation."""

    steps: PositiveInt = Field(2000, description="optimiser steps")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate")
    weight_decay: NonNegativeFloat = Field(0.0, description="of AdamW")
    amsgrad: bool = Field(False, description="AMSGrad variant of AdamW")
    warmup: NonNegativeInt = Field(100, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine", "plateau", "step"] = Field("cosine", description="after the warm-up")
    schedule_factor: PositiveFloat = Field(0.5, description="plateau and step: multiply the learning rate by this")
    schedule_patience: NonNegativeInt = Field(5, description="plateau: evaluations without improvement before a reduction")
    schedule_milestones: list[PositiveInt] = Field([], description="step: optimiser steps at which the rate is multiplied")
    final_fraction: NonNegativeFloat = Field(0.01, description="cosine: last learning rate over the peak")
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0, description="exponential moving average of the weights, used to evaluate; 0 for none")
    clip: NonNegativeFloat = Field(10.0, description="largest gradient norm; 0 for no clipping")
    evaluate_every: PositiveInt = Field(200, description="steps between evaluations on the validation split")
    eval_on_free_atoms: bool = Field(True, description="where the data has `fixed`, measure force errors on free atoms only")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints")
    stop_after: NonNegativeInt = Field(0, description="evaluations without improvement before an early stop; 0 for never")


class ArmConfig(Section):
    """One run of a comparison: the same config with some keys changed."""

    name: str = Field(description="folder and key of the arm", pattern=r"^[a-z0-9_-]+$")
    title: str = Field("", description="how the tables call it")
    set: dict[str, object] = Field({}, description="dotted key: value, as on the command line")


class CompareConfig(Section):
    """Several runs side by side, and how much of the gap to the teacher each closes. No arms means a single run."""

    arms: list[ArmConfig] = Field([], description="the runs; the first is the baseline of 'gap closed'")
    seeds: list[Seed] = Field([], description="seeds of every arm; empty uses run.seed")
    bootstrap: PositiveInt = Field(1000, description="resamples of test structures (and seeds) for the interval of 'gap closed'")


class AblateConfig(Section):
    """What `fastkd ablate` varies of the terms, and on what budget (docs/analysis.md)."""

    losses: list[Literal["mse", "mae", "huber", "cka", "lsp", "gsp"]] = Field([], description="losses to try in each term on features")
    projections: list[Literal["linear", "identity", "mlp"]] = Field([], description="projections to try in each term on features")
    teacher_layers: list[str] = Field([], description="layers of the teacher to try in each term on features: final, regular_k, x_k")
    student_layers: list[list[int]] = Field([], description="blocks of the student to try in each term on features; [] means the last")
    weight_factors: list[NonNegativeFloat] = Field([], description="factors to try on λ of each term; 0 switches it off")
    vary: dict[str, list[object]] = Field({}, description="any other key, dotted: values to try")
    method: Literal["each", "grid"] = Field("each", description="each changes one thing of the config at a time, grid combines all")
    most: PositiveInt = Field(64, description="trials, at most: more are an error, so that a grid does not explode unseen")
    seeds: list[Seed] = Field([], description="seeds of every trial; empty takes compare.seeds, or run.seed")
    steps: NonNegativeInt = Field(0, description="optimiser steps of a trial; 0 takes train.steps")
    seconds: NonNegativeFloat = Field(0.0, description="time for training, all processes together; no run begins after it; 0: no limit [s]")
    halving: NonNegativeInt = Field(0, description="successive halving: keep the best 1/N of the trials for N times the steps; 0 for none")
    overhead_steps: NonNegativeInt = Field(10, description="steps to measure what each term adds to a step; 0 for none, else at least 3")


class Config(Section):
    """A training run, whole."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    teachers: list[NamedTeacherConfig] = Field([], description="several teachers, in place of teacher (docs/distillation.md)")
    distill: DistillConfig = DistillConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    compare: CompareConfig = CompareConfig()
    ablate: AblateConfig = AblateConfig()

    @property
    def named_teachers(self) -> dict[str, TeacherConfig]:
        """Every teacher by name: of ``teachers``, or of the ensemble ``teacher``; a single teacher has no name, and there may be none."""
        if self.teachers:
            return {item.name: TeacherConfig(**item.model_dump(exclude={"name"})) for item in self.teachers}
        one = self.teacher
        if not one.path:
            return {}
        if not one.members:
            return {"": one}
        paths = enumerate([one.path, *one.members], 1)
        return {f"member_{number}": one.model_copy(update={"path": path, "members": []}) for number, path in paths}
