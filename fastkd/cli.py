"""The command line: ``fastkd train · eval · convert · label · synthesize · fit-scales · inspect · cache · cka · pair · profile · ablate · report``.

Exit codes: 0 done; 2 a mistake that the message says how to mend; 130 and 143 stopped by Ctrl-C and SIGTERM with a checkpoint
written; 1 with a traceback for our own bugs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastkd.config import Config
from fastkd.config_loading import load_config, to_yaml
from fastkd.config_schema import options_text
from fastkd.errors import ConfigError, UserError

_TRAIN_HELP = """\
Train a model, alone or with a teacher, or compare several ways side by side.

  %(prog)s                                        the quickstart, about five minutes on a laptop
  %(prog)s my.yaml                                a config of your own
  %(prog)s my.yaml train.steps=500 model.width=64 with options changed
  %(prog)s my.yaml run.resume=true                go on with a stopped run

Precedence, weakest first: defaults, the YAML file (the quickstart if none is named), options from left to right.
"""


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None takes them from the system.
        program: how the usage calls the program, for ``python -m fastkd.train``.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser(given, program).parse_args(given)
    try:
        code: int | None = args.handler(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nstopped; what was finished is kept: the same command goes on from there (fastkd train and ablate with run.resume=true)",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # the reader of a pipe (head, less) has left; that is no error, and nobody is there to hear of it
        sys.stderr.close()
        return 0
    return code or 0


def _parser(given: Sequence[str], program: str | None) -> argparse.ArgumentParser:
    """The parser; only the command that was given gets its arguments, so that no other's imports are paid for."""
    parser = argparse.ArgumentParser(prog="fastkd", description="Distil molecular graph networks.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False, add_help=name != "train"
        )
        if name in given[:1]:
            if program:
                command.prog = program
            _SPECIAL.get(tuple(given[:2]), add_arguments)(command)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = _TRAIN_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("arguments", nargs="*", metavar="config.yaml | a.b=c", help="a YAML file and options, in any order")
    parser.add_argument("-h", "--help", action=_TrainHelp, nargs=0, help="show this and every option with type, default and unit")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the config, for editors, and stop")
    parser.set_defaults(handler=_train)


class _TrainHelp(argparse.Action):
    """Usage, then the list of options; formatting that list is left out of every other start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.format_help() + "\n" + options_text())
        parser.exit()


def _train(args: argparse.Namespace) -> int:
    if args.schema:
        print(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))
        return 0
    files = [argument for argument in args.arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(f"one config file at a time, got {', '.join(files)}; options are written a.b=c, without spaces around '='")
    config = load_config(files[0] if files else None, [argument for argument in args.arguments if "=" in argument])
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    from fastkd.engine.run import run
    from fastkd.engine.signals import Interrupted

    try:
        run(config)
    except Interrupted as stopped:
        again = shlex.join(["fastkd", "train", *(a for a in args.arguments if not a.startswith("run.resume=")), "run.resume=true"])
        print(f"stopped at step {stopped.step}; checkpoint in {stopped.run_dir}\ngo on with: {again}", file=sys.stderr)
        return stopped.exit_code
    return 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder with model.safetensors, or a .safetensors file")
    parser.add_argument("data", metavar="DATA", help="HDF5 file (format v1), or 'embedded'")
    parser.add_argument("--split", default="test", help="name of the split (default: %(default)s)")
    parser.add_argument("--systems", nargs="*", default=[], help="only these systems of the file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of weights and positions (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="structures per batch (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 measures which of 1 and all is faster (default: %(default)s)"
    )
    parser.add_argument(
        "--free-atoms",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="where the data tells fixed atoms, leave them out of force errors (default: yes)",
    )
    parser.add_argument("--out", type=Path, help="folder for predictions.npz and summary.json")
    parser.set_defaults(handler=_eval)


def _eval(args: argparse.Namespace) -> int:
    from fastkd.engine.evaluate_command import evaluate_command

    evaluate_command(args)
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from fastkd.data.commands import add_convert_arguments, run_convert

    parser.epilog = "fastkd convert checkpoint FILE OUT makes a model of one that another package trained."
    add_convert_arguments(parser)
    parser.set_defaults(handler=run_convert)


def _add_convert_checkpoint(parser: argparse.ArgumentParser) -> None:
    from fastkd.models.convert_command import add_checkpoint_arguments, run_convert_checkpoint

    parser.description = "Make a checkpoint of fastkd from one of OCP, fairchem-core 1.x or SchNetPack, or say what such a file holds."
    add_checkpoint_arguments(parser)
    parser.set_defaults(handler=run_convert_checkpoint)


def _add_label(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.teacher_commands import add_label_arguments, run_label

    add_label_arguments(parser)
    parser.set_defaults(handler=run_label)


def _add_synthesize(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.synthesize_command import add_synthesize_arguments, run_synthesize

    add_synthesize_arguments(parser)
    parser.set_defaults(handler=run_synthesize)


def _add_inspect_teacher(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.teacher_commands import add_inspect_teacher_arguments, run_inspect_teacher

    add_inspect_teacher_arguments(parser)
    parser.set_defaults(handler=run_inspect_teacher)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    from fastkd.data.commands import add_inspect_arguments, run_inspect

    add_inspect_arguments(parser)
    parser.set_defaults(handler=run_inspect)


def _add_fit_scales(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.fit_scales_command import add_fit_arguments, run_fit

    add_fit_arguments(parser)
    parser.set_defaults(handler=run_fit)


def _add_report(parser: argparse.ArgumentParser) -> None:
    from fastkd.analysis.report_command import add_report_arguments, run_report

    add_report_arguments(parser)
    parser.set_defaults(handler=run_report)


def _add_cka(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.cka_command import add_cka_arguments, run_cka

    add_cka_arguments(parser)
    parser.set_defaults(handler=run_cka)


def _add_pair(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.pair_command import add_pair_arguments, run_pair

    add_pair_arguments(parser)
    parser.set_defaults(handler=run_pair)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.cache_command import add_cache_arguments

    add_cache_arguments(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.profile_command import add_profile_arguments, run_profile

    add_profile_arguments(parser)
    parser.set_defaults(handler=run_profile)


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    from fastkd.engine.ablate_command import add_ablate_arguments, run_ablate

    add_ablate_arguments(parser)
    parser.set_defaults(handler=run_ablate)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train, distil, compare", _add_train),
    "eval": ("errors of a model on a data set", _add_eval),
    "convert": ("make a data set from extxyz, npz or anything that ASE reads, or a model from a foreign checkpoint", _add_convert),
    "label": ("label a data set with a teacher", _add_label),
    "synthesize": ("make structures by relaxation or dynamics with a teacher, labelled by it", _add_synthesize),
    "fit-scales": ("fit the scale factors of a GemNet-OC to data, before training", _add_fit_scales),
    "inspect": ("say what a data set or a model holds; `inspect teacher …`: what can be captured in a teacher", _add_inspect),
    "cache": ("build a file of teacher outputs for training, or say what one holds", _add_cache),
    "cka": ("say which layers of student and teacher are alike", _add_cka),
    "pair": ("propose which layers to distil into which, from their similarity", _add_pair),
    "profile": ("say what a training step is spent on", _add_profile),
    "ablate": ("try losses, layers, projections and λ on a budget, and write one table", _add_ablate),
    "report": ("make one table and report of finished runs and comparisons", _add_report),
}

#: What has arguments of its own. A file that is really called so is ./teacher.
_SPECIAL: dict[tuple[str, ...], Callable[[argparse.ArgumentParser], None]] = {
    ("convert", "checkpoint"): _add_convert_checkpoint,
    ("inspect", "teacher"): _add_inspect_teacher,
}


if __name__ == "__main__":
    sys.exit(main())
