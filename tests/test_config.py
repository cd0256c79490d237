"""Loading a config: precedence, messages, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkd.config import Config
from fastkd.config_checks import check_sense
from fastkd.config_loading import arm_config, differences, load_config, read_yaml, to_tree, to_yaml, validate
from fastkd.config_schema import field_at, nearest, options, options_markdown, options_text
from fastkd.errors import ConfigError


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text("train: {steps: 7, learning_rate: 1e-3}\ndata: {systems: [ethanol, aspirin]}\n")
    return path


def test_quickstart_has_the_three_arms() -> None:
    config = load_config()
    assert [arm.name for arm in config.compare.arms] == ["alone", "distilled", "unlabelled"]
    alone, distilled, unlabelled = (arm_config(config, arm, 3, Path("x") / arm.name) for arm in config.compare.arms)
    assert not alone.teacher.path
    assert not alone.distill.terms
    assert {"n2n", "v2v"} <= {term.kind for term in distilled.distill.terms}
    assert distilled.data.unlabelled == 0 < unlabelled.data.unlabelled
    assert {alone.run.seed, distilled.run.seed, unlabelled.run.seed} == {3}
    assert alone.train == distilled.train == unlabelled.train


def test_precedence_is_defaults_file_then_options_from_left(minimal: Path) -> None:
    config = load_config(minimal, ["train.steps=8", "train.steps=9"])
    assert config.train.steps == 9
    assert config.train.learning_rate == 1e-3
    assert config.model == Config().model
    # a file replaces the quickstart, it does not add to it
    assert not config.compare.arms


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("data.systems=[a, b]", ("data", "systems"), ["a", "b"]),
        ("data.systems.1=no", ("data", "systems"), ["ethanol", "no"]),
        ("data.systems.2=more", ("data", "systems"), ["ethanol", "aspirin", "more"]),
        ("run.dir=a=b", ("run", "dir"), Path("a=b")),
        ("data.reference_energies={H: -13.6}", ("data", "reference_energies"), {"H": -13.6}),
        ("data.reference_energies.H=-13.6", ("data", "reference_energies"), {"H": -13.6}),
    ],
)
def test_overrides(minimal: Path, override: str, path: tuple[str, str], value: object) -> None:
    config = load_config(minimal, [override])
    assert getattr(getattr(config, path[0]), path[1]) == value


def test_overrides_build_and_index_lists_of_sections(minimal: Path) -> None:
    given = ["teacher.path=t", "distill.terms.0.kind=n2n", "distill.terms.0.weight=2", "distill.terms.1={kind: v2v}"]
    terms = load_config(minimal, given).distill.terms
    assert [(term.kind, term.weight) for term in terms] == [("n2n", 2.0), ("v2v", 1.0)]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=3", ("'stepz'", "train.stepz", "did you mean train.steps?")),
        ("modle.width=3", ("'modle'", "modle.width", "did you mean model.width?")),
        ("learning_rate=3", ("'learning_rate'", "did you mean train.learning_rate?")),
        ("train.cutoff=3", ("'cutoff'", "train.cutoff", "did you mean model.cutoff?")),
        ("distill.terms.0.wieght=3", ("'wieght'", "distill.terms.0.wieght", "did you mean distill.terms.0.weight?")),
        ("train.steps=-4", ("train.steps = -4", "integer > 0")),
        ("train.steps=true", ("train.steps = true", "integer > 0")),
        ("train.steps=2.5", ("train.steps = 2.5", "integer > 0")),
        ("train.steps='4'", ('train.steps = "4"', "integer > 0")),
        ("train.learning_rate=.inf", ("train.learning_rate", "finite")),
        ("train.learning_rate=.nan", ("train.learning_rate", "finite")),
        ("model.kind=egnn", ('model.kind = "egnn"', "painn, schnet")),
        ("data.systems=ethanol", ('data.systems = "ethanol"', "list of text")),
        ("data.systems.5=x", ("data.systems.5", "no index of a list of 2")),
        ("data.reference_energies=[1]", ("data.reference_energies = [1]", "fit, none", "mapping of text to number")),
        ("distill.terms.0.weight=1", ("distill.terms.0.kind is missing",)),
        ("distill.terms=[3]", ("distill.terms.0 = 3", "mapping")),
        ("train=3", ("train = 3", "mapping")),
        ("train.steps", ("no option", "dotted.key=value")),
        ("train.steps=[1", ("train.steps", "not YAML")),
        ("compare.arms.0={name: Bad Name}", ("compare.arms.0.name", "matching")),
    ],
)
def test_mistakes_name_path_value_and_what_is_allowed(minimal: Path, override: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("train: {stpes: 1}\nmodel: {widht: 2}\nnonsense: 3\n")
    with pytest.raises(ConfigError, match=r"3 mistakes in .*bad.yaml") as caught:
        load_config(path)
    assert all(f"  {number}. " in str(caught.value) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: [1\n", r"bad\.yaml, line 3"),
        ("train:\n  steps: 1\n  steps: 2\n", r"bad\.yaml, line 3.*'steps' is given twice"),
        ("- 1\n", r"top level must be a mapping"),
        ("train: !!python/object/apply:os.getcwd []\n", r"bad\.yaml, line 1"),
        ("\0", r"bad\.yaml"),
    ],
)
def test_yaml_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    path = tmp_path / "scalars.yaml"
    path.write_text("a: 1e-3\nb: no\nc: on\nd: 1:30\ne: 2020-01-01\nf: 010\ng: ~\nh: -.5\n")
    expected = {"a": 1e-3, "b": "no", "c": "on", "d": "1:30", "e": "2020-01-01", "f": 10.0, "g": None, "h": -0.5}
    assert read_yaml(path) == expected


def test_resolved_config_reads_back_to_itself(tmp_path: Path) -> None:
    config = load_config(None, ["run.dir='010'", "data.systems=['no', '1e3', 'true', '~']"])
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert validate(to_tree(config)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.terms=[{kind: n2n}]"], "distill.terms need a teacher"),
        (["data.unlabelled=3"], "data.unlabelled needs a teacher"),
        (["data.unlabelled=3", "teacher.path=t"], "without distill.terms"),
        (["loss.energy_weight=0", "loss.forces_weight=0"], "nothing to learn"),
        (["model.kind=schnet", "model.forces=direct"], "PaiNN's and GemNet-OC's"),
        (["compare.arms=[{name: a}, {name: a}]"], "given twice"),
        (["compare.arms=[{name: a}]", "compare.seeds=[1, 1]"], "given twice"),
        (["compare.arms=[{name: a, set: {trian.steps: 3}}]"], r"compare.arms.0 \(a\).*did you mean train.steps"),
        (["compare.arms=[{name: a, set: {run.seed: 3}}]"], "belongs to the whole comparison"),
        (["compare.arms=[{name: a, set: {data.unlabelled: 3}}]"], "needs a teacher"),
    ],
)
def test_senseless_combinations(minimal: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(minimal, overrides)


def test_differences_name_dotted_paths(minimal: Path) -> None:
    old, new = load_config(minimal), load_config(minimal, ["train.steps=8", "data.systems=[x]"])
    assert differences(old, new) == {"data.systems": (["ethanol", "aspirin"], ["x"]), "train.steps": (7, 8)}
    assert not differences(old, old)
    check_sense(old)


def test_help_and_table_name_every_option_once() -> None:
    paths = [option.path for option in options()]
    assert len(paths) == len(set(paths)) > 50
    text, table = options_text(), options_markdown()
    for path in paths:
        assert text.count(f"  {path} = ") == 1
        assert table.count(f"| `{path}` |") == 1
    assert all(option.description and option.allowed and option.default for option in options())
    assert next(option for option in options() if option.path == "model.cutoff").unit == "Å"


def test_every_option_is_found_by_its_path() -> None:
    for option in options():
        assert field_at(option.path.replace(".N", ".0")) is not None
    for wrong in ("train.x", "train.steps.x", "distill.terms.kind", "data.systems.0.x", "nope"):
        assert field_at(wrong) is None
    assert nearest("qqqqqqqq") is None


def test_documentation_table_is_current() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert options_markdown() in page, "run `make docs` to write the table anew"
