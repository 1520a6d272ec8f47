"""Exports a trained model: to a self-contained folder, to the Hub, to a Space, or to ONNX Runtime.

python -m hub_card.export push outputs/quickstart/model you/ita
python -m hub_card.export space outputs/quickstart/model outputs/space
python -m hub_card.export onnx outputs/quickstart/model outputs/onnx --int8
python -m hub_card.export export outputs/quickstart/best outputs/exported --report outputs/quickstart/report.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from transformers.utils import logging

from modeling_ita.command_line import command, print_text, program


def command_line() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog=program("hub_card.export"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="push an exported folder to the Hub, in one commit")
    push.add_argument("folder", help="the exported folder")
    push.add_argument("repository", help="repository on the Hub, you/name; created if missing")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--branch", help="branch to commit to, created if missing; default: main")
    push.add_argument("--message", help="commit message")
    space = commands.add_parser("space", help="write a Space: a web page to try the model on")
    space.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    space.add_argument("output", help="the folder to write")
    space.add_argument("--revision", help="branch, tag or commit of the model; default: main")
    onnx = commands.add_parser("onnx", help="write the model for ONNX Runtime")
    onnx.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    onnx.add_argument("output", help="the folder to write")
    onnx.add_argument(
        "--int8", action="store_true", help="quantize the weights to 8 bits: smaller, and faster on CPUs"
    )
    export = commands.add_parser("export", help="write a model as a self-contained folder, with this version's code")
    export.add_argument("model", help="the model on the Hub, you/name, or its folder")
    export.add_argument("output", help="the folder to write: new, empty, or an earlier export, which it replaces")
    export.add_argument("--report", help="report.json from training or evaluation, for the card's results")
    export.add_argument(
        "--examples",
        choices=("none", "isolated"),
        default="none",
        help="isolated: run the card's snippets to show their output, in a process without network or secrets "
        "(default: %(default)s)",
    )
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    args = command_line().parse_args(arguments)
    logging.disable_progress_bar()
    # Each command has packages of its own, of which the others know nothing.
    if args.command == "push":
        from hub_card.hub.push import push_model, push_text

        pushed = push_model(
            args.folder, args.repository, args.private or None, branch=args.branch, message=args.message
        )
        print_text(push_text(pushed))
    elif args.command == "space":
        from hub_card.space.space_folder import write_space

        print_text(write_space(args.model, args.output, args.revision))
    elif args.command == "onnx":
        from hub_card.onnx.onnx_export import onnx_command

        print_text("\n".join(onnx_command(args.model, args.output, args.int8)))
    else:
        from hub_card.hub.exported_folder import export_model
        from hub_card.report.report import read_report
        from modeling_ita.model_loading import load_model

        model, processor = load_model(args.model)
        report = None if args.report is None else read_report(args.report)
        print_text(export_model(model, processor, args.output, report, examples=args.examples))


if __name__ == "__main__":
    sys.exit(main())
