"""One folder that loads anywhere: weights, configuration, processor, the code that they need, card, handler.

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
    push = commands.add_parser("push", help="put an exported folder on the Hub, in one commit")
    push.add_argument("folder", help="the exported folder")
    push.add_argument("repository", help="its name on the Hub, you/name; made if it is not there")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--branch", help="the branch to commit to, made if it is not there; default: main")
    push.add_argument("--message", help="the commit's message")
    space = commands.add_parser("space", help="write a Space, a page on which to try the model")
    space.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    space.add_argument("output", help="the folder to write")
    space.add_argument("--revision", help="the model's branch, tag or commit; default: main")
    onnx = commands.add_parser("onnx", help="write the model for ONNX Runtime")
    onnx.add_argument("model", help="the model on the Hub, you/name, or an exported folder")
    onnx.add_argument("output", help="the folder to write")
    onnx.add_argument("--int8", action="store_true", help="with weights of 8 bits: smaller, and faster on CPUs")
    export = commands.add_parser(
        "export", help="write a model as a folder that loads anywhere, with this version's code"
    )
    export.add_argument("model", help="the model on the Hub, you/name, or its folder")
    export.add_argument("output", help="the folder to write: new, empty, or an earlier export, which is replaced")
    export.add_argument("--report", help="report.json of its training or evaluation, for the card's results")
    export.add_argument(
        "--examples",
        choices=("none", "isolated"),
        default="none",
        help="whether the card's snippets run, in a process without network and secrets (default: %(default)s)",
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
        from hub_card.predictions.loading import load_model
        from hub_card.report.report import read_report

        model, processor = load_model(args.model)
        report = None if args.report is None else read_report(args.report)
        print_text(export_model(model, processor, args.output, report, examples=args.examples))


if __name__ == "__main__":
    sys.exit(main())
