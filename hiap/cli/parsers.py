"""Arguments of the commands that a checkout adds, apart from the commands, which wait for pandas and more."""

from __future__ import annotations

from pathlib import Path

from hiap.train.arguments import Parser, results_root

REPOSITORY = Path(__file__).resolve().parents[2]


def launch() -> Parser:
    about = "Run a grid of experiments; finished runs are skipped, interrupted ones resumed."
    parser = Parser(prog="hiap launch", description=about)
    parser.add_argument("--grid", default="laptop", help="a name in slurm/grids, or a .yaml file (default: laptop)")
    parser.add_argument(
        "--cluster",
        default="auto",
        choices=("auto", "slurm", "local", "debug"),
        help="auto: SLURM if a controller answers, else processes of this machine; debug: in this process",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="only these runs and what they need")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="only runs of these seeds")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time (default: the grid's hint)")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="stop by itself within this time; launch again to go on"
    )
    parser.add_argument("--results", metavar="DIR", help="default: the site's, else results/local")
    parser.add_argument("--site", type=Path, metavar="FILE", help="cluster settings (default: slurm/site.yaml, if any)")
    does = parser.add_mutually_exclusive_group()
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="train finished runs again whose images, weights or method's code have changed, and what starts from them",
    )
    does.add_argument("--status", action="store_true", help="where every run stands, and nothing else")
    does.add_argument("--collect", action="store_true", help="the table of what is finished, and nothing else")
    does.add_argument("--cancel", action="store_true", help="take the grid's jobs out of SLURM's queue")
    does.add_argument("--resubmit", choices=("failed",), help="only runs that failed, and what they need")
    does.add_argument(
        "--doctor", action="store_true", help="try this cluster by one short job; tell what site.yaml needs"
    )
    does.add_argument("--prefetch", action="store_true", help="fetch the weights and data that runs download")
    does.add_argument("--dry-run", action="store_true", help="list runs and cost, start nothing")
    return parser


def join() -> Parser:
    about = "Tune a method of your own, run it, and set its row beside all others: intervals, cost, verdicts."
    parser = Parser(prog="hiap join", description=about)
    parser.add_argument("method", help="the path of its .py file (docs/join.md)")
    parser.add_argument("--grid", default="join", help="a name in slurm/grids, or a .yaml file (default: join)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="only these seeds (default: all)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time (default: the grid's hint)")
    where = ("auto", "slurm", "local", "debug")
    parser.add_argument("--cluster", default="auto", choices=where, help="as of hiap launch (default: auto)")
    parser.add_argument("--results", default="results/local", metavar="DIR", help="default: results/local")
    parser.add_argument("--rerun", action="store_true", help="train again what was made by another version of the file")
    parser.add_argument("--dry-run", action="store_true", help="list runs and cost, start nothing")
    return parser


def cite() -> Parser:
    parser = Parser(prog="hiap cite", description="What stands behind a result: interval, runs, commit, BibTeX.")
    example = "<grid>/<label>, e.g. study/hiap-20, or a claim, e.g. T2-10; @<commit> behind makes it a permalink"
    parser.add_argument("id", help=example)
    return _with_results(parser)


def claims() -> Parser:
    about = "Recompute every verdict on the paper's claims, and the blocks of the README that come from them."
    return _with_results(Parser(prog="hiap claims", description=about))


def plot() -> Parser:
    about = "Draw a grid: top-1 against MACs, differences from a reference, gates. PNG, PDF and CSV."
    parser = Parser(prog="hiap plot", description=about)
    parser.add_argument("grid", help="a name, or the .yaml file that it was launched from")
    parser.add_argument("--results", type=results_root, metavar="DIR", help="default: wherever the grid's records are")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: <results>/figures/<grid>)")
    parser.add_argument("--against", metavar="LABEL", help="what differences are drawn from (default: hiap's labels)")
    parser.add_argument("--style", metavar="STYLE", help="a style of matplotlib (default: your matplotlibrc)")
    return parser


def _with_results(parser: Parser) -> Parser:
    there = REPOSITORY / "results"
    parser.add_argument("--results", type=results_root, metavar="DIR", default=there, help="the folder of records")
    return parser
