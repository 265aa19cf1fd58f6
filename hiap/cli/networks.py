"""``hiap show``, ``hiap export`` and ``hiap push``: what is done with saved networks.

Exit status: 0 done, 2 with one line on what was expected.
"""

from __future__ import annotations

import argparse

from hiap.train.arguments import Parser, one_line_errors


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    _run(_parser().parse_args(arguments))


def _parser() -> Parser:
    parser = Parser(prog="hiap", description="Look at saved networks, export and share them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="show | export | push")
    show = commands.add_parser("show", help="what is left per block, beside the dense network")
    show.add_argument("folder", help="a folder of hiap.save, or the hub's owner/name")
    show.add_argument("--dense", metavar="NETWORK", help="what it was pruned from: timm's name, a folder, owner/name")
    show.add_argument("--figure", metavar="FILE", help="also draw it: a .png, .svg or .pdf")
    export = commands.add_parser("export", help="write it as ONNX, for torch.export, or for stock timm")
    export.add_argument("folder", help="a folder of hiap.save, or the hub's owner/name")
    export.add_argument("file", help="what to write: .onnx, .pt2 (torch.export), or .safetensors (stock timm)")
    export.add_argument("--opset", type=int, default=18, metavar="N", help="of ONNX, 18 or newer")
    push = commands.add_parser("push", help="upload a folder of hiap.save to a model hub")
    push.add_argument("folder", help="a folder of hiap.save")
    push.add_argument("name", help="owner/name")
    push.add_argument("--private", action="store_true", help="if the repository is new, for you alone")
    return parser


def _run(options: argparse.Namespace) -> None:
    import hiap  # here: --help need not wait for torch

    if options.command == "push":
        print(hiap.push(options.folder, options.name, options.private))
        return
    if options.command == "export":
        from hiap.formats import export

        print(export.to_file(hiap.load(options.folder), options.file, options.opset))
        return
    from hiap.formats import show

    if options.figure:
        show.checked_picture(options.figure)
    shown = show.show(options.folder, options.dense)
    print(shown)
    if options.figure:
        print(shown.save(options.figure))
