"""The numbers of HiAP's paper and of others, from ``results/published``; its README is the data dictionary."""

from __future__ import annotations

import pandas as pd

from analysis.records.results import REPOSITORY
from hiap.train.config import ConfigError

FOLDER = REPOSITORY / "results" / "published"
HEAT_MAPS = (5, 6, 7, 8, 9)  # figures of gates over epochs
EPOCHS = 50  # columns in each of them: the first is the end of the first epoch
TABLE2, TABLE3 = "table2_deit_small", "table3_cifar10_vit_tiny"


def table(name: str) -> pd.DataFrame:
    """``<name>.csv``. Raises ``ConfigError`` naming those that there are."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        raise ConfigError(f"{name}: not a published table; there are {sorted(p.stem for p in FOLDER.glob('*.csv'))}")
    return pd.read_csv(path, keep_default_na=False, na_values=[""])  # 'None' is a value in Table 1


def heat_map(figure: int) -> pd.DataFrame:
    """Figs. 5-9 as digitised, with the columns of a ``gate_trajectory`` that they have."""
    rows = table("fig5_9_gate_heatmaps").query("figure == @figure")
    names = {"active_heads": "heads", "active_neurons": "neurons"}
    return rows.rename(columns=names)[["epoch", "block", "heads", "neurons"]].reset_index(drop=True)


def last_state(figure: int) -> pd.DataFrame:
    """Heads and neurons per block at the last epoch of one of Figs. 5-9."""
    return heat_map(figure).query("epoch == epoch.max()")


def totals() -> pd.DataFrame:
    """Open ``heads`` and ``neurons`` of the whole network, by ``figure`` and ``epoch`` of Figs. 5-9."""
    frames = {figure: heat_map(figure).groupby("epoch")[["heads", "neurons"]].sum() for figure in HEAT_MAPS}
    return pd.concat(frames, names=["figure"]).reset_index()


def strengths() -> pd.DataFrame:
    """``lambda_macro`` and ``lambda_micro`` of Figs. 5-9, by ``figure``."""
    return table("fig5_9_gate_heatmaps").groupby("figure")[["lambda_macro", "lambda_micro"]].first()


def figure_title(figure: int) -> str:
    row = strengths().loc[figure]
    macro, micro = (rf"$\lambda_\mathrm{{{level}}}$" for level in ("macro", "micro"))
    return f"Fig. {figure} of the paper: {macro} = {row['lambda_macro']:g}, {micro} = {row['lambda_micro']:g}"
